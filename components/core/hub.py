"""What the Hugging Face hub's client says when it refuses, in words a person can act on."""

from components.core.errors import first_line


def why(error: Exception, revision: str, but: str = "") -> str:
    """The client raises many unrelated kinds; each becomes one line.

    Args:
        error: what it raised.
        revision: that was asked for.
        but: what else a name that the hub does not know could have meant.
    """
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page on the hub, and set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision {revision} of it; give a branch, a tag or a commit"
    return f"{but}the Hugging Face hub says: {first_line(error)}"
