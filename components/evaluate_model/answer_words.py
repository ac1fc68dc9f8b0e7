"""The words of an answer, as trained or as generated: without special tokens, and without the thoughts before them.

A reference and an answer go through the same, so a tool call that is generated token for token as it was trained is
equal to its reference, and a thinking block counts neither for nor against the words after it.
"""

import re
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.errors import InputError

USUAL = ("<think>", "</think>")
"""What models put around their thoughts where the chat template does not say it."""


class AnswerWords:
    """Finds the words of answers.

    Args:
        tokenizer: of the model that answers.
    """

    def __init__(self, tokenizer: Any) -> None:
        """See the class."""
        self._tokenizer = tokenizer
        self._opening, self._closing = thinking_marks(tokenizer) or USUAL
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def of_ids(self, ids: list[int]) -> str:
        """The words of generated tokens."""
        return self.of(self._tokenizer.decode(ids, skip_special_tokens=False))

    def of(self, text: str) -> str:
        """The words of an answer's text, which may have special tokens in it.

        Thoughts that were begun and not ended have no words after them.
        """
        _, closing, after = text.rpartition(self._closing)
        if closing:
            text = after
        elif self._opening and text.lstrip().startswith(self._opening):
            text = ""
        return self._special.sub("", text).strip()


def thinking_marks(tokenizer: Any) -> tuple[str, str] | None:
    """What the chat template writes before and after an assistant's thoughts; None where it writes none."""
    thoughts, words = "qzthoughtsxk", "qzwordsxk"
    question = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": words, "reasoning_content": thoughts}
    try:
        prompt = chat_template.render(tokenizer, [question], add_generation_prompt=True)
        text = chat_template.render(tokenizer, [question, answer])
    except InputError:
        return None
    before, found, rest = text.partition(thoughts)
    between, also, _ = rest.partition(words)
    if not (found and also and between.strip()):
        return None
    opening = before[len(prompt) :] if before.startswith(prompt) else ""
    return opening.strip(), between.strip()
