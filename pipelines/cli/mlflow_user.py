"""`qlora mlflow-user`: the user that runs log in to MLflow as, made by MLflow's administrator.

A job of the chart runs it at each installation and upgrade. Whoever makes an experiment or a model in MLflow may do
everything with it, and what runs make they make as this user; so it needs rights only on what was made before it:

    qlora-pipelines-registry            READ    where MLflow lets a user read nothing of others
    qlora-training                      EDIT    training writes its figures there
    models of the administrator's runs  MANAGE  registration takes back what attempts at the same time made twice
    their experiments of the same name  MANAGE  likewise

Those are the models whose versions say that a run made them, among those that the administrator made: in version 0.1
the steps logged in as the administrator. What other people made stays theirs.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client, references, training_runs, versions
from qlora_pipelines.components.core.registry.mlflow_client import suppress

USER_VARIABLE, PASSWORD_VARIABLE = "QLORA_MLFLOW_USERNAME", "QLORA_MLFLOW_PASSWORD"
"""The login of the runs; that of the administrator is where every client of MLflow looks for its own."""
LEVELS = ("DENY", "NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE")
"""MLflow's permissions, each with more rights than the one before."""
EXPERIMENT, MODEL = "experiment", "registered_model"


class Right(NamedTuple):
    """A permission on an experiment, whose key is its number, or on a registered model, whose key is its name."""

    kind: str
    key: str
    name: str
    permission: str


@click.command("mlflow-user")
@click.option("--wait", default=0, show_default=True, type=click.IntRange(min=0),
              help="Seconds to wait for MLflow to answer.")  # fmt: skip
def mlflow_user(wait: int) -> None:
    r"""Make the user that runs log in to MLflow as, with the rights that they need.

    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are the administrator's, QLORA_MLFLOW_USERNAME and
    QLORA_MLFLOW_PASSWORD the user's. A user that exists gets this password. The chart's job calls this.

    \b
    Example:
      QLORA_MLFLOW_USERNAME=runs QLORA_MLFLOW_PASSWORD=... qlora mlflow-user
    """
    admin, user = os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get(USER_VARIABLE, "")
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if not user or ":" in user:  # MLflow takes a colon, but a login ends its user's name at the first
        raise InputError(f"{USER_VARIABLE} is {user!r}: give a user's name, without colons")
    if not password:
        raise InputError(f"{PASSWORD_VARIABLE} is not set: give a password of 12 characters or more")
    if user == admin:
        click.echo(f"warning: nothing is done: runs log in as the administrator {admin}; give them a user of their own")
        return
    mlflow_client.wait(wait)
    try:
        client = mlflow_client.connect(timeout=60, retries=3, with_store=False)
    except InputError as error:
        raise InputError(f"as the administrator {admin}: {error}") from None
    users = _users()
    with mlflow_client.mlflow_errors(f"making the user {user} as {admin}"):
        if not _make(users, user, password):
            click.echo(f"warning: nothing is done: {user} is an administrator; give runs a user of their own")
            return
        for right in _needed(client, users):
            _grant(users, user, right)


def _users() -> Any:
    """MLflow's client for its users."""
    try:
        from mlflow.server import get_app_client

        return get_app_client("basic-auth", os.environ[mlflow_client.URI_VARIABLE])
    except ImportError as error:
        raise InputError(f"{error}: install qlora-pipelines[server], which has what MLflow's logins need") from None


def _make(users: Any, user: str, password: str) -> bool:
    """Makes the user, or sets its password; False, and nothing changes, where it is an administrator."""
    import mlflow

    try:
        with suppress("RESOURCE_DOES_NOT_EXIST"):
            if users.get_user(user).is_admin:
                return False
            users.update_user_password(user, password)
            click.echo(f"user {user}: it was there, its password is set")
            return True
        users.create_user(user, password)
    except mlflow.MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        raise InputError("this MLflow has no logins; it was not started with --app-name basic-auth") from None
    click.echo(f"user {user}: made")
    return True


def _needed(client: Any, users: Any) -> Iterator[Right]:
    """The rights on what is there already."""
    from mlflow.server.auth.routes import LIST_CURRENT_USER_PERMISSIONS

    for name, permission in ((references.EXPERIMENT, "READ"), (training_runs.EXPERIMENT, "EDIT")):
        if found := client.get_experiment_by_name(name):
            yield Right(EXPERIMENT, found.experiment_id, name, permission)
    # Its own client has no method for this. Who made something has MANAGE on it, by name.
    rows = users._request(LIST_CURRENT_USER_PERMISSIONS, "GET")["permissions"]
    own = {(row["resource_type"], row["resource_pattern"]) for row in rows if row["permission"] == "MANAGE"}
    for name in sorted({item.name for item in versions.search(client) if versions.KEY_TAG in item.tags}):
        if (MODEL, name) in own:
            yield Right(MODEL, name, name, "MANAGE")
            found = client.get_experiment_by_name(name)
            if found and (EXPERIMENT, found.experiment_id) in own:
                yield Right(EXPERIMENT, found.experiment_id, name, "MANAGE")


def _grant(users: Any, user: str, right: Right) -> None:
    """Gives a right that the user does not have; one that was given by hand stays, also where it is less."""
    has = users.get_user_permission(user, right.kind, right.key).permission
    if LEVELS.index(has) >= LEVELS.index(right.permission):
        return
    said = f"{right.kind.replace('_', ' ')} {right.name}: {user}"
    with suppress("RESOURCE_ALREADY_EXISTS"):
        users.grant_user_permission(user, right.kind, right.key, right.permission)
        click.echo(f"{said} gets {right.permission}")
        return
    click.echo(f"{said} has {has} and keeps it, because it was given by hand; runs need {right.permission}")
