"""What the documents say is what the program does."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hotfix import errors
from hotfix.attacks import ATTACKS
from hotfix.cli import app
from hotfix.families import FAMILIES
from hotfix.intervals import Part
from hotfix.manifest import Manifest
from hotfix.patch import Patch
from hotfix.report import Report

ROOT = Path(__file__).parents[1]
REPORT = {"hotfix.intervals", "hotfix.findings", Report.__module__}
VERBS = [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented_and_has_help(verb):
    assert f"## hotfix {verb}" in (ROOT / "docs/cli.md").read_text()
    assert app[verb].help


def test_no_documented_verb_is_missing():
    documented = re.findall(r"^## hotfix (\w+)", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    assert sorted(documented) == sorted(VERBS)


@pytest.mark.parametrize("field", sorted(Manifest.model_fields))
def test_every_manifest_field_is_specified(field):
    assert f"`{field}`" in (ROOT / "docs/format.md").read_text()


@pytest.mark.parametrize("part", [part for part in Part.__subclasses__() if part.__module__ in REPORT])
def test_every_field_of_a_report_is_specified(part):
    text = (ROOT / "docs/report.md").read_text()
    assert [field for field in part.model_fields if f"`{field}`" not in text] == []


def test_every_family_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs/families.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(FAMILIES)


def test_the_error_tree_is_drawn_whole():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == set(re.findall(r"[A-Z]\w+", errors.__doc__.split("\n\n")[1])) & classes == classes


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere_and_words_are_honest(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    assert not re.search(r"\b(guarantee\w*|compliant|deleted from)\b", text, flags=re.IGNORECASE)


def test_the_table_of_patches_is_what_the_reports_say():
    done = subprocess.run([sys.executable, ROOT / "patches/table.py"], capture_output=True, text=True, timeout=100)
    assert done.stdout in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_table_of_attacks_is_what_was_measured(name):
    found = json.loads((ROOT / f"benchmarks/results/attacks/mauritania-2017.{name}.json").read_text())["numbers"]
    rates = " | ".join(f"{found[key]['k']} of {found[key]['n']}" for key in ("before", "weak", "after", "stranger"))
    assert f"| {name} | {ATTACKS[name].budget} | {rates} |" in (ROOT / "README.md").read_text()
    assert re.search(rf"\b{name}\b", (ROOT / "docs/cli.md").read_text())


def test_the_table_of_clients_is_what_was_measured():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/clients/table.py"], capture_output=True, text=True)
    assert done.stdout in (ROOT / "docs/clients.md").read_text()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example here, as `python FILE ARGUMENTS` does, and return what it prints."""

    def printed(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return printed


def test_the_readme_python_runs(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(ROOT)
    exec("\n".join(blocks), {})


def test_the_stacking_example_runs(run):
    patches = [next((ROOT / "patches" / name).glob("*.safetensors")) for name in ("mauritania-2017", "syria-2025")]
    assert run("02_stack_two.py", *patches) == "['syria-2025 1.0.0 is on']\n()\n"


SHORT = """
[train]
steps = 2
batch = 2
retain_batch = 2
weight = "uniform"

[retain]
prompts = ["mali", "chad"]
size = 16
"""


def test_the_building_example_runs(run, tmp_path):
    """On a short recipe: what it prints and writes, not how well it forgets."""
    text = (ROOT / "patches/mauritania-2017/recipe.toml").read_text() + SHORT
    for kind in ("forget", "surrogate"):
        text = text.replace(f'"{kind}/*.png"', f'"{ROOT}/patches/mauritania-2017/{kind}/mr.png"')
    (tmp_path / "recipe.toml").write_text(text)
    assert "mauritania-2017 is on" in run("01_forget_one.py", tmp_path / "recipe.toml", tmp_path)
    assert (tmp_path / "after.png").is_file()
    patch = Patch.load(tmp_path / "mauritania-2017-1.0.0.safetensors")
    assert patch.manifest.recipe["train"]["steps"] == 2  # a whole build takes minutes
