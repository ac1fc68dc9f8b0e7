"""Which variables a chat template reads besides the conversation: those that a row may set."""

from typing import Any

from qlora_pipelines.components.core.data import chat_template

GIVEN = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})
"""What a template gets anyway."""


def of(tokenizer: Any) -> frozenset[str]:
    """The names that a row may set, such as `enable_thinking` or `documents`.

    A name that the template sets itself is not among them, unless it asks whether it is defined: then what it sets is
    the default, as with Llama's `date_string`.

    Args:
        tokenizer: has the chat template.
    """
    import jinja2
    from jinja2 import meta, nodes

    try:
        parsed = chat_template.compiled(tokenizer).environment.parse(tokenizer.get_chat_template())
    except (jinja2.TemplateError, ValueError):
        return frozenset()  # there is none, or rendering says why
    names = list(parsed.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx in ("store", "param")}
    asked = {test.node.name for test in parsed.find_all(nodes.Test)
             if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)}  # fmt: skip
    # Documents are of transformers' own interface, whatever a template does with them.
    found = meta.find_undeclared_variables(parsed) - (own - asked - {"documents"})
    return frozenset(found) - GIVEN - set(tokenizer.special_tokens_map)
