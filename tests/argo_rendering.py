"""What Argo 4.0 makes of a template before it creates a pod, as its sources have it (util/template, workflow/common).

A template is written as JSON, its `{{...}}` are replaced, and the result is read again: first with what the whole
workflow knows, then with the template's inputs. Inputs stand in that JSON too, so `{{...}}` in an input's value is
replaced as well, and since Argo does all this several times, so is `{{...}}` in what came out of it.
"""

import base64
import json
import re
from typing import Any

TOKEN = re.compile(r"\s*('[^']*'|[\w.]+(?:-\w+)*|==|&&|[?:+()])")


def substituted(part: Any, values: dict[str, str]) -> Any:
    """Part of a workflow with every reference replaced that has a value."""

    def replace(found: re.Match[str]) -> str:
        tag = found[1]
        text = evaluated(json.loads(f'"{tag[1:]}"'), values) if tag.startswith("=") else values.get(tag.strip())
        return found[0] if text is None else json.dumps(text, ensure_ascii=False)[1:-1]

    return json.loads(re.sub(r"\{\{(.*?)\}\}", replace, json.dumps(part)))


def evaluated(expression: str, values: dict[str, str]) -> str | None:
    """An expression of the few kinds that the workflow has; None where a name is not known yet."""
    tokens = [token for token in TOKEN.findall(expression)]

    def take(*wanted: str) -> str:
        return tokens.pop(0) if tokens and (not wanted or tokens[0] in wanted) else ""

    def choice() -> Any:
        found = both()
        if not take("?"):
            return found
        yes = choice()
        take(":")
        no = choice()
        return yes if found else no

    def both() -> Any:
        found = compared()
        while take("&&"):
            found = compared() and found
        return found

    def compared() -> Any:
        left = joined()
        if take("=="):
            return left == joined()
        return bool(re.search(re.sub(r"\$$", r"\\Z", joined()), left)) if take("matches") else left

    def joined() -> str:
        found = one()
        while take("+"):
            found += one()
        return found

    def one() -> str:
        token = take()
        if token in ("(", "sprig.b64enc", "sprig.b64dec"):
            found = choice() if token == "(" else one()
            take(")") if token == "(" else None
            code = {"sprig.b64enc": base64.b64encode, "sprig.b64dec": base64.b64decode}.get(token)
            return str(code(found.encode()).decode() if code else found)
        return token[1:-1] if token.startswith("'") else values[token]

    try:
        return str(choice())
    except KeyError:
        return None


def in_its_task(workflow: dict[str, Any], name: str, parameters: dict[str, str], outputs: dict[str, str]) -> Any:
    """The template of a task, rendered.

    Args:
        workflow: the WorkflowTemplate.
        name: of the task, and of its template.
        parameters: of the workflow, where they are not the defaults.
        outputs: of other tasks, by their names in Argo; also what else the workflow knows, such as `workflow.uid`.
    """
    known = of_workflow(workflow, parameters) | {key: outputs[key] for key in outputs if key.startswith("workflow.")}
    pipeline = substituted(substituted(_template(workflow, "pipeline"), known), known)
    [task] = [each for each in pipeline["dag"]["tasks"] if each["name"] == name]
    arguments = substituted({**task, "when": "", "depends": ""}, known | outputs)["arguments"]["parameters"]
    return alone(workflow, name, {each["name"]: each["value"] for each in arguments}, known)


def alone(workflow: dict[str, Any], name: str, inputs: dict[str, str], known: dict[str, str]) -> Any:
    """A template with these inputs, as where the workflow is started at it (`argo submit --entrypoint`)."""
    template = _template(workflow, name)
    declared = template.get("inputs", {}).get("parameters", [])
    given = [{"name": each["name"], "value": inputs[each["name"]]} for each in declared]
    template = {**template, "inputs": {"parameters": given}}
    for _ in ("the template", "the try", "the pod or the patch"):
        template = substituted(template, known | {"retries": "0"})
        own = {f"inputs.parameters.{each['name']}": each["value"] for each in template["inputs"]["parameters"]}
        template = substituted(template, known | own)
    return template


def of_workflow(workflow: dict[str, Any], parameters: dict[str, str]) -> dict[str, str]:
    """What all templates know."""
    declared = workflow["spec"]["arguments"]["parameters"]
    given = {each["name"]: str(parameters.get(each["name"], each.get("value", ""))) for each in declared}
    return {f"workflow.parameters.{name}": value for name, value in given.items()} | {"workflow.uid": "uid-1"}


def _template(workflow: dict[str, Any], name: str) -> Any:
    [found] = [each for each in workflow["spec"]["templates"] if each["name"] == name]
    return found
