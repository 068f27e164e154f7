"""The task files and suites that the project ships: each loads, speaks the lexicon's words, and says whose figures it gives."""

from pathlib import Path

import pytest
import yaml

from medpclip.data.building.recipe import Recipe
from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.evaluation.suite import is_suite, read_suite
from medpclip.evaluation.task import Task, load_task

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "eval").rglob("*.yaml"))
TASKS = [path for path in FILES if path.parent.name != "suites"]
SUITES = [path for path in FILES if path.parent.name == "suites"]
SOURCES = {path.stem for path in (ROOT / "eval" / "sources").glob("*.yaml")}
# Words of public sets that the lexicon has no term for.
NO_TERMS = {
    "benign breast lesion",
    "benign colon tissue",
    "benign lung tissue",
    "breast carcinoma in situ",
    "cancer-associated stroma",
    "debris",
    "elastosis",
    "hair follicle",
    "invasive breast carcinoma",
    "large cell carcinoma",
    "lymph node metastasis",
    "mild non-proliferative diabetic retinopathy",
    "moderate non-proliferative diabetic retinopathy",
    "mucus",
    "necrotic osteosarcoma",
    "no COVID-19 pneumonia",
    "no diabetic retinopathy",
    "normal breast tissue",
    "normal colon mucosa",
    "normal lymph node",
    "pathological myopia",
    "sebaceous gland",
    "severe non-proliferative diabetic retinopathy",
    "skeletal muscle",
    "smooth muscle",
    "sweat gland",
    "tissue without tumour",
    "viable osteosarcoma",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "eval"))


def classes_of(task: Task) -> set[str]:
    questions = [*task.image, *([task.region] if task.region else [])]
    return {name for question in questions for name in question.classes or []}


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_classes_are_terms(path: Path) -> None:
    task = load_task(path)
    assert classes_of(task) - Lexicon.load().terms.keys() - NO_TERMS == set()
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_no_exception_is_a_term_or_unused() -> None:
    asked = {name for path in TASKS for name in classes_of(load_task(path))}
    assert NO_TERMS & Lexicon.load().terms.keys() == set()
    assert NO_TERMS - asked == set()


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_published_figures_have_a_source(path: Path) -> None:
    for figure in load_task(path).published:
        assert "arXiv" in figure.source or "doi.org" in figure.source
        assert 0 < figure.value < 100
        assert figure.model and figure.metric and figure.note


def test_published_figures_are_those_that_are_public() -> None:
    given = {task.name: [f.value for f in task.published] for task in map(load_task, TASKS) if task.published}
    assert given == {"covid_ct": [68.47], "acl_mri": [59.35], "br35h": [92.38]}


@pytest.mark.parametrize("path", SUITES, ids=name_of)
def test_suites(path: Path) -> None:
    assert is_suite(path)
    _, asked = read_suite(path)
    names = [one.task.name for one in asked]
    assert len(names) == len({one.folder for one in asked}) == len(yaml.safe_load(path.read_text())["tasks"])


def test_a_suites_data_may_lie_elsewhere(tmp_path: Path) -> None:
    _, asked = read_suite(ROOT / "eval" / "suites" / "real.yaml", data=[str(tmp_path)])
    assert {folder for one in asked for folder in one.task.folders} == {str(tmp_path / name) for name in SOURCES}


def test_every_real_source_has_a_task_and_every_task_is_in_a_suite() -> None:
    recipes = {path.stem for path in (ROOT / "data_recipes").glob("*.yaml") if Recipe.load(path).layout == "real"}
    assert recipes == SOURCES
    listed = {(path.parent / name).resolve() for path in SUITES for name in yaml.safe_load(path.read_text())["tasks"]}
    assert listed == {path for path in TASKS if path.parent.name in ("sources", "public")}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_labels_and_modalities_are_the_recipes(name: str) -> None:
    """What a task asks of a source is what its recipe can say."""
    recipe = Recipe.load(ROOT / "data_recipes" / f"{name}.yaml")
    task = load_task(ROOT / "eval" / "sources" / f"{name}.yaml")
    for question in task.image:
        if question.label == "modality":
            said = {recipe.modality} if isinstance(recipe.modality, str) else recipe.modality.words()
        else:
            said = recipe.labels[question.label.removeprefix("labels.")].words()
        assert question.classes is not None
        assert set(question.classes) & said
    for probe in task.probe:
        assert probe.label == "region" or probe.label.removeprefix("labels.") in recipe.labels
    assert any(r.kind == "caption" for r in task.retrieval) == bool(recipe.captions)
