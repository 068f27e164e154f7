"""The shipped terms are sound, what isn't is refused by name, and relations are what they say."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medpclip.data.lexicon import Lexicon, Term, shipped_files
from medpclip.data.lexicon.labels import normal_form
from medpclip.data.lexicon.terms import ROOTS
from medpclip.errors import MedpclipError

LEXICON = Lexicon.load()
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "lexicon.md"
SOUND = """
anatomical structure: {kind: anatomy, description: A part.}
kidney:
  kind: anatomy
  parents: [anatomical structure]
  synonyms: [ren]
  description: It makes urine.
left kidney: {kind: anatomy, parents: [kidney], side: left, description: The left one.}
right kidney: {kind: anatomy, parents: [kidney], side: right, description: The right one.}
"""


def load(tmp_path: Path, *texts: str) -> Lexicon:
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"terms{number}.yaml")
        files[-1].write_text(text, encoding="utf-8")
    return Lexicon.load(files)


def test_the_sound_one_is_sound(tmp_path: Path) -> None:
    assert load(tmp_path, SOUND).names("kidney") == ["kidney", "ren"]


A = "kind: anatomy, parents: [anatomical structure], description: A part."


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (f"liver: {{{A.replace('anatomical structure', 'organ')}}}", "terms1.yaml: term 'liver' has the unknown parent 'organ'"),
        (f"liver: {{{A}, part_of: [belly]}}", "terms1.yaml: term 'liver' has the unknown whole 'belly'"),
        (f"liver: {{{A.replace('anatomical structure', 'lobe')}}}\nlobe: {{{A.replace('anatomical structure', 'liver')}}}",
         "terms1.yaml: term 'liver' is its own ancestor"),
        (f"liver: {{{A}, part_of: [lobe]}}\nlobe: {{{A}, part_of: [liver]}}", "its own ancestor or part; break the cycle"),
        (f"liver: {{{A.replace('anatomical structure', 'liver')}}}", "its own ancestor"),
        ("liver: {kind: anatomy, description: A part.}", "term 'liver' is an orphan; .* lead to 'anatomical structure'"),
        ("liver: {kind: lesion, parents: [kidney], description: A part.}", "'liver' is an orphan; .* lead to 'lesion'"),
        (f"liver: {{{A}, synonyms: [REN]}}", "terms1.yaml: term 'liver': 'ren' means 'kidney' too"),
        (f"liver: {{{A}, labels: [Kidney]}}", "'kidney' means 'kidney' too"),
        (f"liver: {{{A}, synonyms: [hepar, Hepar]}}", "term 'liver' has the word 'hepar' twice"),
        (f"liver: {{{A}, synonyms: [Liver]}}", "term 'liver' has the word 'liver' twice"),
        (f"kidney: {{{A}}}", "terms1.yaml: term 'kidney' is defined twice"),
        (f"liver: {{{A}}}\nliver: {{{A}}}", "terms1.yaml: unreadable lexicon .*'liver' is stated twice"),
        (f"liver: {{{A.replace('anatomy', 'organ')}}}", "term 'liver' is of the unknown kind 'organ'; known: modality, anatomy"),
        (f"liver: {{{A.replace('A part.', '')}}}", "terms1.yaml: key 'liver.description' is null"),
        (f"liver: {{{A.replace('A part.', '. ')}}}", "term 'liver' has the description '.'; write one sentence"),
        (f"liver: {{{A.replace('A part.', 'A part')}}}", "write one sentence, with a capital and a full stop"),
        (f"liver: {{{A.replace('A part.', 'a part.')}}}", "write one sentence"),
        (f"liver: {{{A.replace('A part.', 'A part. A large one.')}}}", "write one sentence"),
        (f"liver: {{{A}, colour: red}}", "terms1.yaml: key 'liver.colour' is unknown"),
        (f"liver: {{{A}, parent: [kidney]}}", "key 'liver.parent' is unknown; did you mean 'liver.parents'"),
        (f"liver: {{{A}, synonyms: hepar}}", "key 'liver.synonyms' is 'hepar', expected a list"),
        (f"liver: {{{A}, synonyms: [no]}}", "key 'liver.synonyms.0' is false, expected text"),
        (f"liver: {{{A}, side: middle}}", "key 'liver.side' is 'middle'"),
        (f"liver: {{{A}, side: left}}", "term 'liver' has the side 'left', which its name doesn't say"),
        (f"left eye: {{{A}, side: right}}", "term 'left eye' has the side 'right', which its name doesn't say"),
        (f"left eye: {{{A}, side: left}}", "terms1.yaml: term 'left eye' has a side, but 'right eye' hasn't"),
        (f"left eye: {{{A}, side: left}}\nright eye: {{{A}}}", "term 'left eye' has a side, but 'right eye' hasn't"),
        (f"renal cortex: {{{A.replace('anatomical structure', 'left kidney')}}}", "'renal cortex' is not on the left"),
        (f"liver: {{{A}, codes: ['SNOMED:1']}}", "term 'liver' has the code 'SNOMED:1'; expected UBERON"),
        (f"liver: {{{A}, codes: ['UBERON:2107']}}", "has the code 'UBERON:2107'"),
        (f"'liver ': {{{A}}}", "has stray blanks in its name"),
        ("- liver", "terms1.yaml: is no mapping of terms"),
        ("", "is no mapping of terms"),
        ("liver: [", "terms1.yaml: unreadable lexicon"),
        ("liver: !!python/object/apply:os.getcwd []", "unreadable lexicon"),
        ("liver: liver", "terms1.yaml: key 'liver' is 'liver'"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        load(tmp_path, SOUND, more)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="none.yaml: unreadable lexicon"):
        Lexicon.load([tmp_path / "none.yaml"])


def test_own_terms_join_the_shipped_ones(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("horseshoe kidney: {kind: anatomy, parents: [kidney], description: Two kidneys grown together.}")
    lexicon = Lexicon.load([*shipped_files(), own])
    assert lexicon.find("Horseshoe_Kidneys") == "horseshoe kidney"
    assert lexicon.related("horseshoe kidney", "kidney") and "horseshoe kidney" not in Lexicon.load().terms


def test_the_shipped_terms_reach_a_root_of_their_kind_by_brute_force() -> None:
    def climbs(name: str) -> bool:
        term = LEXICON.terms[name]
        return name in ROOTS[kind] or any(climbs(parent) for parent in term.parents)

    for name, term in LEXICON.terms.items():
        kind = term.kind
        assert climbs(name), name
    words = Counter(word.casefold() for n, t in LEXICON.terms.items() for word in (n, *t.words()))
    assert words.most_common(1)[0][1] == 1


def test_no_two_shipped_terms_look_alike_to_find() -> None:
    forms: dict[str, str] = {}
    for name, term in LEXICON.terms.items():
        for word in (name, *term.words()):
            form = normal_form(word)
            assert form is not None and forms.setdefault(form, name) == name, word


def test_descriptions_are_plain_and_of_their_own() -> None:
    described = Counter(term.description for term in LEXICON.terms.values())
    assert described.most_common(1)[0][1] == 1
    assert all(10 < len(text) < 160 for text in described)


def test_relations() -> None:
    assert LEXICON.ancestors("COVID-19 pneumonia") >= {"viral pneumonia", "pneumonia", "lung disease", "abnormality"}
    assert LEXICON.related("left kidney", "kidney") and not LEXICON.related("left kidney", "right kidney")
    assert not LEXICON.related("kidney", "abdomen") and "abdomen" in LEXICON.wholes("left kidney")
    assert {"heart", "chest"} <= LEXICON.wholes("left ventricle") and "chest" not in LEXICON.ancestors("left ventricle")
    assert LEXICON.sided("kidney", "left") == "left kidney" and LEXICON.sided("liver", "left") is None
    assert LEXICON.sided("lung lobe", "left") is None and LEXICON.sided("ventricle", "left") is None
    assert LEXICON.mirror("left rib 3") == "right rib 3" and LEXICON.mirror("left atrium") == "left atrium"
    assert LEXICON.side("left kidney") == "left" and LEXICON.side("left ventricle") is None
    assert LEXICON.side("no term") is None and LEXICON.ancestors("no term") == LEXICON.wholes("no term") == frozenset()


def test_terms_by_hand_need_no_roots() -> None:
    assert Lexicon({"a": Term("x", ""), "b": Term("x", "", parents=["a"])}).related("a", "b")


def test_the_page_states_the_counts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    stated = {kind: int(count) for kind, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)}
    counts = Counter(term.kind for term in LEXICON.terms.values())
    assert stated == counts
    clinical = sum(counts.values()) - counts["phantom"]
    assert clinical >= 480 and f"{clinical} clinical terms" in text
    coded = sum(bool(term.codes) for term in LEXICON.terms.values())
    assert f"{coded} of them carry a code" in text


def test_importing_medpclip_reads_no_lexicon() -> None:
    code = "import sys, medpclip; assert not any(n.startswith('medpclip.data.lexicon') for n in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
