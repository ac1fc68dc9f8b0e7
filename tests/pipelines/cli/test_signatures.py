"""Signed and unsigned versions, and keys that are none."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from qlora_pipelines.components.core.registry import manifest, mlflow_client
from tests.pipelines.cli.registered import Make, qlora, refused, register, write_keys


def test_a_signature_is_demanded_where_a_public_key_is_given(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    _, other = write_keys(tmp_path, "theirs")
    uri, _ = register(make_merged, store, "unsigned")
    pull = ["pull", "models:/tickets@champion", "--to", tmp_path / "here", "--public-key"]
    assert f"is unsigned, but the public key {public} is to verify it" in refused(*pull, public)
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    uri, _ = register(make_merged, store, "signed", champion_version="1")
    assert "made with another key" in refused(*pull, other)
    assert "not a public key in PEM" in refused(*pull, private)
    assert "No such file" in refused(*pull, tmp_path / "none.pub")
    result = qlora(*pull, public)
    assert result.exit_code == 0 and "signed by the key" in result.output, result.output
    tags = mlflow_client.connect().get_model_version("tickets", "2").tags
    assert len(tags["qlora.signed_by"]) == 64
    # Whoever can write bucket and registry, but has no key.
    weights = Path(uri) / "model" / "config.json"
    weights.write_bytes(weights.read_bytes() + b" ")
    files = manifest.read(uri).files | {"model/config.json": manifest.entry(weights.read_bytes())}
    forged = manifest.make(uri, files)
    (Path(uri) / manifest.MANIFEST).write_bytes(forged.content)
    mlflow_client.connect().set_model_version_tag("tickets", "2", manifest.MANIFEST_TAG, forged.sha256)
    shutil.rmtree(tmp_path / "here")
    assert "model.sig does not sign this model/config.json" in refused(*pull, public)


def test_strangers_can_verify_the_signature_with_model_signing_alone(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import verifying

    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    register(make_merged, store, "one")
    assert qlora("pull", "models:/tickets@champion", "--to", tmp_path / "here").exit_code == 0
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(tmp_path / "here", tmp_path / "here" / "model.sig")
    (tmp_path / "here" / "README.md").write_text("another")
    with pytest.raises(ValueError, match=r"Signature mismatch.*README"):
        verifier.verify(tmp_path / "here", tmp_path / "here" / "model.sig")


@pytest.mark.parametrize("content", ["", "no key", "rsa", "encrypted"])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_registered(
    content: str, make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pem = tmp_path / "bad.pem", serialization.Encoding.PEM
    if content == "rsa":
        key = rsa.generate_private_key(65537, 2048)
        path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    elif content == "encrypted":
        private = ec.generate_private_key(ec.SECP256R1())
        how = serialization.BestAvailableEncryption(b"password")
        path.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    else:
        path.write_text(content)
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(path))
    with pytest.raises(Exception, match="not a private key in PEM of curve P-256, P-384 or P-521 without password"):
        register(make_merged, store, "one")
    assert mlflow_client.connect().search_registered_models() == []
