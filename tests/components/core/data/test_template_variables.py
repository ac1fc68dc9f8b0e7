import copy
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.data import template_variables
from qlora_pipelines.components.core.models import loading


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ tools, add_generation_prompt }}", set()),
        ("{% if enable_thinking is defined and x %}x{% endif %}{{ strftime_now('%Y') }}", {"enable_thinking", "x"}),
        # What the template sets itself, in a branch or a loop, is its own.
        ("{% if tools %}{% set content = 1 %}{% endif %}{{ content }}{% for a in tools %}{{ a }}{% endfor %}", set()),
        ("{% macro f(text) %}{{ text }}{% endmacro %}{{ f(documents) }}", {"documents"}),
        # Unless it only sets a default, as Llama's templates do.
        ("{% if not date_string is defined %}{% set date_string = 'x' %}{% endif %}{{ date_string }}", {"date_string"}),
        ("{% for m in messages %}{% generation %}{{ m.content }}{{ mood }}{% endgeneration %}{% endfor %}", {"mood"}),
        ("{% if %}", set()),
    ],
)  # fmt: skip
def test_the_names_that_a_row_may_set(tiny_model: Path, template: str, names: set[str]) -> None:
    tokenizer: Any = copy.copy(loading.load_tokenizer(tiny_model))
    tokenizer.chat_template = template
    assert template_variables.of(tokenizer) - {"bos_token"} == names
