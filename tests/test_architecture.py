"""Rules of the source tree that import-linter cannot express.

No circular imports between files, short folder listings, no Ray Tune below `sweeps`, one test file
a method, documents that name only what exists, the same checks in `make check` and before a commit.
"""

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import grimp
import pytest
import yaml

from actors.families.registry import FAMILIES
from fusion.registry import METHODS

ROOT = Path(__file__).parent.parent
PACKAGES = ("fusion", "actors", "sweeps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


LONGEST_LISTING = 14
"""Entries a folder of the three packages may have, data and `__init__.py` not counted."""

LONGEST_TEST_LISTING = 16
"""The same for folders of tests: `tests/sweeps` has a folder a package, and helpers."""


@cache
def graph() -> grimp.ImportGraph:
    """All imports between modules: at the top, inside functions, and under TYPE_CHECKING."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def circles(imports: grimp.ImportGraph) -> set[frozenset[str]]:
    """Sets of modules in which each imports each other, directly or through others."""
    found = set()
    for module in imports.modules:
        tied = imports.find_upstream_modules(module) & imports.find_downstream_modules(module)
        found |= {frozenset({module, *tied})} if tied else set()
    return found


def test_no_files_import_each_other_in_a_circle():
    assert len(graph().modules) > 300
    assert circles(graph()) == set()


def test_a_circle_is_found():
    imports = grimp.ImportGraph()
    for importer, imported in ("ab", "bc", "ca", "cd"):
        imports.add_import(importer=importer, imported=imported)
    assert circles(imports) == {frozenset("abc")}


def listing(folder: Path) -> list[str]:
    """Modules and packages in a folder; files such as `__init__.py` are not counted."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path.suffix == ".py" and not path.name.startswith(("__", "conftest")))
        or (path.is_dir() and any(path.glob("*.py")))
    )


FOLDERS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_lists_few_entries(folder):
    assert len(listing(folder)) <= LONGEST_LISTING, listing(folder)


def test_a_folder_of_tests_lists_few_entries():
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    long = {folder: listing(folder) for folder in folders}
    assert not {folder for folder, found in long.items() if len(found) > LONGEST_TEST_LISTING}


def dotted(path: Path) -> str:
    """A file as the name of its module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path):
    names = imported(path)
    if path.is_relative_to(ROOT / "actors"):
        assert not [name for name in names if name.startswith(("ray.tune", "sweeps"))]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_test_file(name):
    method = METHODS[name]
    *folders, module = method.rule.__module__.split(".")
    text = ROOT.joinpath("tests", *folders, f"test_{module}.py").read_text()
    assert name in text


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("fusion", "actors", "sweeps", "tests", "benchmarks", "docs", "examples")
PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TOP)})(?:/[\w.-]+)*/?(?:\.\w+)?(?![\w/<{{*])")
MODULE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TOP[:5])})(?:\.[A-Za-z_]\w*)+(?![\w/])")


def names_in(document: Path, pattern: re.Pattern[str]) -> set[str]:
    """What a pattern finds in a document, without the full stop of a sentence."""
    return {found.rstrip(".") for found in pattern.findall(document.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document):
    paths = {name for name in names_in(document, PATH) if "/" in name}
    assert not sorted(name for name in paths if not (ROOT / name).exists())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_in_documents_exist(document):
    def missing(name: str) -> bool:
        folder, rest = ROOT, name.split(".")
        while rest and (folder / rest[0]).is_dir():
            folder /= rest.pop(0)
        module = folder / f"{rest[0]}.py" if rest else folder
        if module.exists():
            rest = rest[1:]
        else:
            module = folder / "__init__.py"
        return bool(rest) and not re.search(rf"\b{rest[0]}\b", module.read_text())

    names = {n for n in names_in(document, MODULE) if not n.endswith((".py", ".md", ".yaml"))}
    assert not sorted(filter(missing, names))


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as hosts of Git repositories make them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            aimed = (document.parent / path) if path else document
            assert aimed.exists(), target
            assert not anchor or anchor in anchors(aimed), target


def test_the_index_names_every_page():
    told = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not sorted(page for page in pages if f"]({page}" not in told)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 120


def files_of(page: str) -> list[str]:
    """Paths of the numbered list under "The files" of a page of the documents."""
    told = (ROOT / "docs" / page).read_text().partition("## The files\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", told, re.MULTILINE)


def test_a_method_is_named_in_the_files_of_its_page_and_in_no_other():
    told = files_of("add_a_method.md")
    assert len(told) == 8
    assert all((ROOT / path).is_file() for path in told)
    texts = [ROOT / "README.md", ROOT / "sweeps" / "cli" / "methods.json"]
    code = [*FILES, *(ROOT / "sweeps" / "configs").glob("*.yaml"), *texts]
    named = [path for path in code if re.search(r"\bmagmax\b", path.read_text())]
    found = {str(path.relative_to(ROOT)) for path in named}
    assert found == {path for path in told if not path.startswith("tests/")}


def test_the_table_of_families_says_what_plans_refuse():
    told = (ROOT / "docs" / "families.md").read_text().partition("## Methods\n")[2]
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| `")]
    listed = {name: row[1:] for row in rows for name in re.findall(r"`([a-z_]+)`", row[0])}
    labels = [SimpleNamespace(fields={"labels": each}) for each in (("a", "b"), ())]
    bases = [("clip", labels[1]), ("bert", labels[0]), ("bert", labels[1]), ("t5", labels[1])]
    offers = [FAMILIES[name].offers(base) for name, base in bases]
    for name, method in METHODS.items():
        runs = ["no" if method.requires - offered else "yes" for offered in offers]
        assert listed.get(name, ["yes"] * len(bases)) == runs, name


def importers(package: str) -> set[str]:
    """Modules outside a package that import from it."""
    inside = {name for name in graph().modules if f"{name}.".startswith(f"{package}.")}
    found = (graph().find_modules_that_directly_import(name) for name in inside)
    return set().union(*found) - inside


def test_a_family_is_named_in_the_files_of_its_page_and_in_no_other():
    told = files_of("add_a_family.md")
    assert len(told) == 4
    assert all((ROOT / path).is_file() for path in told)
    outside = {name for name in importers("actors.families.clip") if "actors.embedded" not in name}
    assert outside == {"actors.families.registry"}


READERS = re.compile(r"families\.(clip|vision|images)")
"""Modules of families whose models read images."""


def test_images_are_named_in_the_files_of_their_page_and_in_no_other():
    told = files_of("add_a_data_kind.md")
    assert len(told) == 6
    assert all((ROOT / path).is_file() for path in told)
    page = (ROOT / "docs" / "add_a_data_kind.md").read_text()
    names = {name for name in importers("actors.data.images") if not READERS.search(name)}
    outside = {name for name in names if "actors.embedded" not in name}
    assert not sorted(name for name in outside if f"`{name.replace('.', '/')}.py`" not in page)


KINDS = {"Static", "Composed", "PerTask", "StatisticsBased", "LogitSpace", "Selected",
         "Fitted", "Adapted", "Learned", "Adaptive", "Gated", "InModel", "Routed"}  # fmt: skip
"""Classes of `fusion.kinds`."""


def kinds_asked(path: Path) -> list[str]:
    """The calls `isinstance(…, kind of method)` of a file, as `file:line`."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "isinstance"
        if {getattr(node, "id", "") for node in ast.walk(call.args[1])} & KINDS
    ]


def test_few_places_ask_for_the_kind_of_a_method():
    found = [place for path in FILES for place in kinds_asked(path)]
    assert 0 < len(found) <= 10, found


FAMILY_WORDS = re.compile(
    r"\b(CLIP\w*|clip_(model|vision)\w*|vision_(model|config)|text_(model|config|projection)"
    r"|visual_projection|image_size|patch_size|pixel_values|logit_scale)\b"
)
"""Names of CLIP's classes, tensors and configuration fields."""

FAMILY_FOLDERS = ("actors/families/clip/", "actors/families/vision/", "actors/embedded/")

FAMILY_EXCEPTIONS = {
    "actors/families/registry.py": {"CLIP"},
    "actors/data/images/preprocessor_config.py": {
        "CLIPFeatureExtractor",
        "CLIPImageProcessor",
        "CLIPImageProcessorFast",
        "CLIPImageProcessorPil",
    },  # image processors, which models of other families use too
    "actors/gate_features/extractor.py": {"pixel_values"},  # an argument of transformers' ResNet
    "actors/training/checkpoint.py": {"pixel_values"},  # fine-tuning of image models
    "fusion/logits/cosine_head.py": {"logit_scale"},  # an argument
    "fusion/registry.py": {"CLIP"},  # titles of papers
    "fusion/testing.py": {"logit_scale"},  # a toy tensor
    "sweeps/analysis/parts/angles.py": {"visual_projection"},  # the last row of a table
    "sweeps/train/spec.py": {"CLIP"},  # a message
}


def words_of(path: Path) -> set[str]:
    """Words of a family in a file's names and texts; docstrings and comments are not read."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    fields = [
        str(getattr(node, field))
        for node in ast.walk(tree)
        if id(node) not in prose
        for field in ("id", "attr", "arg", "name", "value")
        if isinstance(getattr(node, field, None), str)
    ]
    return {found[0] for text in fields for found in FAMILY_WORDS.finditer(text)}


def test_words_of_a_family_stay_in_its_folder():
    found = {str(path.relative_to(ROOT)): words_of(path) for path in FILES}
    assert found["actors/families/clip/segments.py"]
    outside = {
        path: words - FAMILY_EXCEPTIONS.get(path, set())
        for path, words in found.items()
        if not path.startswith(FAMILY_FOLDERS)
    }
    assert {path: words for path, words in outside.items() if words} == {}


IMAGE_FOLDERS = ("actors/data/", "actors/embedded/", *FAMILY_FOLDERS)

IMAGE_SENTENCES = {
    "actors/cluster/metrics.py": {"Images or texts through the model; use: forward, learn"},
    "actors/families/t5/heads.py": {": images; t5 models read texts"},
    "actors/gate_features/extractor.py": {": squash: true; of images only"},
    "sweeps/planning/print_plan.py": {" of squashed images"},
    "sweeps/results/export/model_card.py": {"```\n\nThe number is equal where rows are prepared"},
    "sweeps/spec/shift.py": {"the name of the image column"},
    "sweeps/spec/task.py": {"the name of the image column"},
}
"""How texts begin that are about images whatever the models read."""


def image_sentences(path: Path) -> set[str]:
    """Texts of a file, of more than one word, that name images; docstrings are not read."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    }
    return {
        text for text in texts if " " in text and re.search(r"\bimages?\b", text, re.IGNORECASE)
    }


def test_texts_for_users_of_other_data_name_no_images():
    """Rows are images or texts: `Inputs.kind` decides the word."""
    for path in FILES:
        name = str(path.relative_to(ROOT))
        if name.startswith(("actors/", "sweeps/")) and not name.startswith(IMAGE_FOLDERS):
            allowed = tuple(IMAGE_SENTENCES.get(name, ()))
            found = image_sentences(path)
            assert not [text for text in found if not text.startswith(allowed)], name
            assert bool(found) == bool(allowed), name


NAMED = {"best_single", "dawe", "ensemble", "fisher", "greedy_ensemble", "greedy_soup",
         "learned_soup", "linear_probe", "oracle_single", "simple_average", "task_arithmetic",
         "uniform_soup", "weighted_average", "wise_ft_linear"}  # fmt: skip
"""Methods named outside `fusion`: reference rows, notes on rows, and heads and statistics of the
same name. Every other method is a row of the table only."""


def test_code_outside_fusion_names_few_methods():
    texts = {
        node.value
        for path in FILES
        if not path.is_relative_to(ROOT / "fusion")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts & set(METHODS) <= NAMED


def make_check() -> list[str]:
    """The commands of `make check`."""
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_a_commit_is_checked_as_make_check_does():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == make_check()
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in hooks)


def test_the_workflow_runs_ci_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert job["steps"][-1] == {"run": "bash .ci/run"}


def test_the_readme_names_every_method_and_the_sweep_of_all_has_it():
    told = (ROOT / "README.md").read_text().partition("## The methods")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == set(METHODS)
    swept = yaml.safe_load((ROOT / "sweeps" / "configs" / "real8_all.yaml").read_text())
    assert set(swept["methods"]) == set(METHODS)


MAKERS = {
    "actors": {
        "actors.checkpoints.checkpoint",
        "actors.data.images.pixel_cache",
        "actors.data.images.preprocess",
        "actors.data.images.shifted_pixels",
        "actors.data.task",
        "actors.data.text.inputs",
        "actors.data.text.tokenizer",
        "actors.experts.embedding_cache",
        "actors.families.bert.heads",
        "actors.families.clip.zero_shot_heads",
        "actors.families.fused_classifier",
        "actors.families.t5.heads",
        "actors.files.fingerprint",
        "actors.gate_features.extractor",
        "actors.gate_features.feature_cache",
    },
    "sweeps": {
        "sweeps.planning.learning_needs",
        "sweeps.planning.prepared",
        "sweeps.planning.shift_data",
        "sweeps.train.inputs.synthetic",
        "sweeps.train.run",
    },
    "fusion": set(),
}
"""Modules that make fingerprints: each of an object, from all that it was read from."""


@pytest.mark.parametrize("package", PACKAGES)
def test_only_these_modules_make_fingerprints(package):
    def makes(path: Path) -> bool:
        calls = (node.func for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call))  # fmt: skip
        return any(
            isinstance(f, ast.Name) and f.id in ("fingerprint", "Fingerprint") for f in calls
        )

    found = {dotted(path) for path in (ROOT / package).rglob("*.py") if makes(path)}
    assert found == MAKERS[package]
