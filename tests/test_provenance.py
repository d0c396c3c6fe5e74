"""How a patch came to be, and what a patched pipeline consists of: as the formats' own validators read it."""

import hashlib
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance as Message
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from packageurl import PackageURL

from hotfix import lock, provenance
from hotfix.cli_sign import sbom
from hotfix.errors import HotfixError, SignatureError
from hotfix.patch import Patch

PATCHES = Path(__file__).parents[1] / "patches"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(next((PATCHES / "syria-2025").glob("*.safetensors")), tmp_path))


@pytest.fixture
def below():
    return Patch.load(next((PATCHES / "iraq-2008").glob("*.safetensors")))


def told(file, *below):
    ran = {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:02:00Z", "hardware": "x86_64 CPU, 2 threads"}
    return provenance.statement(Patch.load(file), file, below, **ran)


def of_the_hub(file):
    patch = Patch.load(file)
    base = patch.manifest.base.model_copy(update={"repo": "acme/model", "commit": COMMIT})
    manifest = patch.manifest.model_copy(update={"base": base})
    return Patch(manifest.text(), patch.entries).save(file)


def test_it_is_an_in_toto_statement_with_a_slsa_predicate(file, below):
    text = provenance.save(told(of_the_hub(file), below), file).read_text()
    statement = json_format.Parse(text, StatementMessage())  # refuses unknown fields
    Statement.copy_from_pb(statement).validate()
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    predicate = json_format.ParseDict(json.loads(text)["predicate"], Message())
    assert predicate.run_details.metadata.finished_on.seconds - predicate.run_details.metadata.started_on.seconds == 120


def test_it_names_the_bytes_the_base_the_recipe_and_what_it_was_built_with(file, below):
    said = told(of_the_hub(file), below)
    patch, (subject,) = Patch.load(file), said["subject"]
    assert subject["digest"] == {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert subject["annotations"]["hotfix.id"] == patch.id
    how = said["predicate"]["buildDefinition"]
    assert how["externalParameters"]["recipe"] == patch.manifest.recipe
    found = {one["name"]: one for one in how["resolvedDependencies"]}
    assert found["acme/model"]["uri"] == f"pkg:huggingface/acme/model@{COMMIT}"
    assert found["acme/model"]["digest"]["gitCommit"] == COMMIT
    assert found["iraq-2008 1.0.0"]["digest"] == {"hotfixId": below.id.removeprefix("sha256:")}
    assert PackageURL.from_string(found["torch"]["uri"]).version == version("torch")
    assert len(found["recipe"]["digest"]["sha256"]) == 64


def test_another_recipe_or_base_is_another_digest(file):
    patch = Patch.load(file)
    recipe, base = dict(patch.manifest.recipe), patch.manifest.base
    assert provenance.sha256(recipe) != provenance.sha256(recipe | {"name": "other"})
    moved = base.model_copy(update={"sketch": {layer: x + 1e-6 for layer, x in base.sketch.items()}})
    assert provenance.base(base)["digest"] != provenance.base(moved)["digest"]
    assert "uri" not in provenance.base(base)  # a bundled base has no commit


def bill(path, capsys, name="acme/flags@1"):
    capsys.readouterr()
    sbom(name, lock_file=path)
    text = capsys.readouterr().out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return text


def test_a_bill_of_a_patched_pipeline_is_valid_and_lists_base_and_patches(file, tmp_path, capsys):
    path, other = tmp_path / "hotfix.lock", next((PATCHES / "iraq-2008").glob("*.safetensors"))
    lock.add(path, [file, other])
    text = bill(path, capsys)
    found = Bom.from_json(json.loads(text))
    model = found.metadata.component
    assert (model.name, model.version, model.type) == ("acme/flags", "1", "machine-learning-model")
    assert [one.name for one in model.pedigree.ancestors] == ["hotfix:flags"]
    resolved = {issue.id: issue.description for one in model.pedigree.patches for issue in one.resolves}
    assert resolved == {patch.id: patch.manifest.request for patch in map(Patch.load, (file, other))}
    hashes = {part.name: {one.content for one in part.hashes} for part in found.components}
    assert hashes["syria-2025"] == {hashlib.sha256(file.read_bytes()).hexdigest()}
    assert bill(path, capsys) == text  # SOURCE_DATE_EPOCH is set
    assert bill(path, capsys, "acme/flags@2") != text
    lock.remove(path, ["syria-2025", "iraq-2008"])
    assert "patches" not in json.loads(bill(path, capsys))["metadata"]["component"].get("pedigree", {})


def test_a_base_of_the_hub_has_its_package_url(file, tmp_path, capsys):
    lock.add(tmp_path / "hotfix.lock", [of_the_hub(file)])
    (base,) = json.loads(bill(tmp_path / "hotfix.lock", capsys))["metadata"]["component"]["pedigree"]["ancestors"]
    assert (base["name"], base["version"], base["purl"]) == (
        "acme/model",
        COMMIT,
        f"pkg:huggingface/acme/model@{COMMIT}",
    )


def test_a_bill_is_refused_where_a_patch_would_be(file, tmp_path, monkeypatch):
    path = tmp_path / "hotfix.lock"
    lock.add(path, [file])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "hotfix.sbom", None)
        with pytest.raises(HotfixError) as found:
            sbom("acme/flags", lock_file=path)
        assert "diffusion-hotfix[sbom]" in found.value.hint
    path.write_text(path.read_text() + "[signatures]\nsigners = [{identity = 'ann', issuer = 'https://acme'}]\n")
    with pytest.raises(SignatureError, match="is not signed"):
        sbom("acme/flags", lock_file=path, out=tmp_path / "bill.json")
    assert not (tmp_path / "bill.json").exists()
