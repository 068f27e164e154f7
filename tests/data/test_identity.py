"""Identifiers that are planted in a source are in nothing that a build and the commands after it make to be shared."""

import base64
import csv
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medpclip.config import from_mapping
from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.quarantine import private_folder
from medpclip.data.building.recipe import Recipe
from medpclip.data.inspection.check import check_folder
from medpclip.data.inspection.overlap import overlap
from medpclip.data.inspection.overlap_command import draw_pairs, format_overlap
from medpclip.data.inspection.plots import write_plots
from medpclip.data.inspection.sheet import write_sheet
from medpclip.data.inspection.stats import format_stats, stats_json, tally_folder
from medpclip.data.mixture import write_mixture
from medpclip.data.shards import ShardFolder
from medpclip.errors import MedpclipError
from medpclip.files import dump_json

SURNAME, GIVEN, BIRTH, BIRTH_DICOM = "Zorbanelli", "Xanthippe", "12.03.1956", "19560312"
PATIENT, ACCESSION, PLACE, DOCTOR = "PX-8841277", "ACC-55019283", "Vilkovar", "Quillbrand"
PATIENTS = [f"{PATIENT}-{i}" for i in range(12)]
TOKENS = (SURNAME, GIVEN, BIRTH, BIRTH_DICOM, "8841277", "55019283", PLACE, DOCTOR)
FOLDER = f"{PLACE}/{SURNAME}_{GIVEN}"
CAPTION = (
    f"Patient {GIVEN} {SURNAME}, born {BIRTH}, was seen by Dr. {DOCTOR} at {PLACE} General Hospital. MRN 8841277, "
    f"accession number {ACCESSION}, file /srv/{PLACE}/{SURNAME}/1.dcm. "
    "There is a small effusion on the left, and the heart is of normal size."
)
# Known to nobody but the file's own header: not even the private folder may have them.
HEADER = "Hqxvheader"


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (40, 48), np.uint8)


def image_bytes(i: int) -> bytes:
    """A picture with identifiers wherever its format has room."""
    stream, image = io.BytesIO(), Image.fromarray(pixels(i))
    said = f"{HEADER} {SURNAME} {BIRTH}"
    if i % 2:
        info = PngImagePlugin.PngInfo()
        info.add_text("Patient", said)
        info.add_text("Comment", said, zip=True)
        info.add_itxt("Author", said, zip=True)
        image.save(stream, "PNG", pnginfo=info, icc_profile=said.encode())
        return stream.getvalue() + said.encode()
    exif = Image.Exif()
    exif[0x013B], exif[0x010E] = said, said  # artist, description
    image.save(stream, "JPEG", exif=exif, comment=said.encode(), icc_profile=said.encode())
    return stream.getvalue() + said.encode()


def write_images(source: Path) -> list[str]:
    names = []
    for i in range(12):
        name = f"images/{FOLDER}/{PATIENTS[i]}_{BIRTH_DICOM}.{'png' if i % 2 else 'jpg'}"
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(image_bytes(i))
        names.append(name)
    (source / "images" / FOLDER / f"broken_{ACCESSION}.png").write_bytes(b"\x89PNG" + HEADER.encode())
    return names


def coco(source: Path) -> dict[str, Any]:
    names = write_images(source)
    said = {"patient": {"name": f"{SURNAME}^{GIVEN}", "birth": BIRTH}, "notes": CAPTION, "view": "AP", "by": DOCTOR}
    names.append(f"images/{FOLDER}/broken_{ACCESSION}.png")
    data = {
        "info": {"contributor": f"{DOCTOR}, {PLACE}", "date_created": BIRTH},
        "categories": [{"id": 1, "name": "lung"}, {"id": 2, "name": SURNAME}],
        "images": [
            {"id": i, "file_name": Path(name).name, "width": 48, "height": 40, "patient_id": PATIENTS[i % 12], **said}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": i % 13, "category_id": 1 + (i == 5), "bbox": [4, 4, 9, 9], "annotator": DOCTOR}
            for i in range(26)
        ],
    }
    data["annotations"][3]["bbox"] = [SURNAME, 0, 1, 1]
    (source / "annotations.json").write_text(json.dumps(data))
    return {
        "reader": "coco",
        "terms": {"lung": "lung"},
        "group": {"metadata": "patient_id"},
        "labels": {
            "view": {"key": "view", "values": {"AP": "anteroposterior"}},
            "name": {"key": "by", "values": {"x": "y"}},
        },
        "captions": ["notes"],
    }


def table(source: Path) -> dict[str, Any]:
    names = write_images(source)
    with open(source / f"{SURNAME}.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "name", "born", "patient", "finding", "report"])
        writer.writeheader()
        for i, name in enumerate(names):
            finding = SURNAME if i == 2 else "effusion"
            row = {"image": Path(name).name, "name": SURNAME, "born": BIRTH, "patient": PATIENTS[i], "finding": finding}
            writer.writerow(row | {"report": CAPTION})
    return {
        "reader": "classification",
        "options": {"table": f"{SURNAME}.csv"},
        "group": {"metadata": "patient"},
        "labels": {"finding": {"key": "finding", "values": {"effusion": "pleural effusion"}}},
        "captions": ["report"],
    }


def jsonl(source: Path) -> dict[str, Any]:
    rows = [{"image": Path(name).name, "caption": CAPTION, "by": DOCTOR} for name in write_images(source)]
    rows[4]["caption"] = f"{SURNAME}, {GIVEN}, {BIRTH}"  # little else: in doubt
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "reader": "captions",
        "options": {"table": "captions.jsonl"},
        "group": {"path": r"(PX-\d+-\d+)_"},
        "captions": ["caption"],
    }


def nifti(source: Path) -> dict[str, Any]:
    import nibabel

    rng = np.random.default_rng(0)
    for i in range(4):
        folder = source / PLACE / f"{PATIENTS[i]}_{SURNAME}"
        folder.mkdir(parents=True)
        for name, values in (("image", rng.integers(0, 900, (24, 20, 5))), ("mask", rng.integers(0, 2, (24, 20, 5)))):
            volume = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
            volume.header["descrip"] = f"{HEADER} {SURNAME} {BIRTH}".encode()
            volume.header["intent_name"] = SURNAME.encode()
            volume.header["aux_file"] = f"/{PLACE}/x".encode()
            volume.header["db_name"] = GIVEN.encode()
            said = nibabel.nifti1.Nifti1Extension("comment", f"{HEADER} {DOCTOR} {ACCESSION}".encode())
            volume.header.extensions.append(said)
            nibabel.save(volume, folder / f"{name}.nii.gz")
    return {
        "reader": "nifti",
        "options": {
            "images": "**/{case}/image.nii.gz",
            "labels": [{"files": "**/{case}/mask.nii.gz", "values": {"1": "lung"}}],
        },
        "terms": {"lung": "lung"},
        "group": {"path": r"(PX-\d+-\d+)_"},
    }


def dicom(source: Path) -> dict[str, Any]:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    for i in range(6):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.8841277.55019283.{i + 1}"
        file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, f"1.2.3.8841277.55019283.{i + 1}"
        file.StudyInstanceUID = file.SeriesInstanceUID = f"1.2.3.8841277.{i // 2 + 1}"
        file.PatientName, file.PatientID, file.PatientBirthDate = f"{SURNAME}^{GIVEN}", PATIENTS[i // 2], BIRTH_DICOM
        file.AccessionNumber, file.InstitutionName = ACCESSION, f"{PLACE} General Hospital"
        file.ReferringPhysicianName, file.StudyDescription = DOCTOR, f"{HEADER} {SURNAME}"
        file.PatientComments, file.DeviceSerialNumber, file.Modality = CAPTION, HEADER, "DX"
        block = file.private_block(0x0011, HEADER, create=True)
        block.add_new(1, "LO", f"{SURNAME} {DOCTOR}")
        file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 40, 48, 1, "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 8
        file.HighBit, file.PixelRepresentation = 7, 0
        file.PixelData = pixels(i).tobytes()
        pydicom.dcmwrite(source / f"{i}.dcm", file, enforce_file_format=True)
    broken = (source / "0.dcm").read_bytes()
    (source / "7.dcm").write_bytes(broken[: len(broken) // 2].replace(b"55019283.1", b"55019283.9"))
    return {"reader": "dicom", "group": {"metadata": "PatientID"}}


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "coco": coco,
    "table": table,
    "jsonl": jsonl,
    "nifti": nifti,
    "dicom": dicom,
}
HEADER_ONLY = {"dicom": (HEADER, *TOKENS)}  # what else is nowhere at all


@pytest.fixture(scope="module", params=SOURCES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind = request.param
    home = tmp_path_factory.mktemp(kind)
    source = home / f"source_{SURNAME}"
    source.mkdir()
    content = SOURCES[kind](source)
    facts = {"name": kind, "title": "t", "modality": "radiograph", "licence": "l", "citation": "c"}
    recipe = from_mapping(Recipe, facts | content, "recipe")
    build(recipe, source, home / "all" / kind, Salt(b"a secret of the lab", "test"), samples_per_shard=4)
    return kind, home / "all" / kind


def found_in(data: bytes, tokens: tuple[str, ...], where: str) -> Iterator[str]:
    """Tokens in the bytes, in any case and in UTF-16, and in what the bytes have compressed or encoded."""
    layers = [data]
    for match in re.finditer(rb"x[\x01\x5e\x9c\xda]", data):  # the first bytes of a zlib stream (RFC 1950)
        try:
            layers.append(zlib.decompressobj().decompress(data[match.start() :], 1 << 20))
        except zlib.error:
            continue
    layers += [base64.b64decode(text) for text in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data)]
    for layer in layers:
        small = layer.lower()
        for token in tokens:
            for spelling in (token.lower().encode(), token.lower().encode("utf-16-le")):
                if spelling in small:
                    yield f"{where}: {token}"


def found_below(folder: Path, tokens: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        found += found_in(str(path.relative_to(folder)).encode(), tokens, "a file's name")
        if path.is_file():
            found += found_in(path.read_bytes(), tokens, path.name)
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found += found_in(stream.read(), tokens, f"{path.name}: {member.name}")
    return found


def test_the_scan_finds_what_is_planted(tmp_path: Path) -> None:
    for i in (0, 1):
        (tmp_path / f"{i}").write_bytes(image_bytes(i))
    assert {line.partition(": ")[2] for line in found_below(tmp_path, TOKENS)} == {SURNAME, BIRTH}
    only_compressed, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Comment", SURNAME, zip=True)
    Image.fromarray(pixels(0)).save(only_compressed, "PNG", pnginfo=info)
    assert SURNAME.encode() not in only_compressed.getvalue()
    assert list(found_in(only_compressed.getvalue(), TOKENS, "x")) == [f"x: {SURNAME}"]
    assert list(found_in(b"base64," + base64.b64encode(SURNAME.encode()), TOKENS, "x")) == [f"x: {SURNAME}"]


def test_nothing_in_the_shards(built: tuple[str, Path]) -> None:
    _, out = built
    assert len(ShardFolder(out)) >= 5
    assert found_below(out, (*TOKENS, HEADER)) == []
    assert list(check_folder(out)) == []


def test_headers_are_nowhere_at_all(built: tuple[str, Path]) -> None:
    kind, out = built
    assert any(private_folder(out).iterdir())
    assert found_below(private_folder(out), HEADER_ONLY.get(kind, (HEADER,))) == []


def test_nothing_in_statistics_sheets_reports_and_mixtures(built: tuple[str, Path], tmp_path: Path) -> None:
    kind, out = built
    tally = tally_folder(out)
    (tmp_path / "stats.txt").write_text(format_stats(stats_json(tally)))
    (tmp_path / "stats.json").write_bytes(dump_json(stats_json(tally)))
    write_plots([tally], tmp_path / "stats.html")
    write_sheet(out, tmp_path / "sheet.png")
    shared = overlap(out, out)
    (tmp_path / "overlap.json").write_bytes(dump_json(shared.to_json()))
    (tmp_path / "overlap.txt").write_text(format_overlap(shared))
    if shared.pairs:
        (tmp_path / "pairs.png").write_bytes(draw_pairs(shared))
    write_mixture(out.parent, {kind: 1.0})
    (tmp_path / "mixture.json").write_bytes((out.parent / "mixture.json").read_bytes())
    assert found_below(tmp_path, (*TOKENS, HEADER)) == []


def test_captions_are_there_without_the_people_in_them(built: tuple[str, Path]) -> None:
    kind, out = built
    captions = {caption for i in range(len(ShardFolder(out))) for caption in ShardFolder(out).sample(i).captions}
    if kind in ("coco", "table", "jsonl"):
        (caption,) = captions
        assert caption.endswith("There is a small effusion on the left, and the heart is of normal size.")
        assert caption.count("[") >= 6
    else:
        assert captions == set()


def test_groups_of_two_salts_are_not_compared(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    recipe = from_mapping(
        Recipe,
        {"name": "r", "title": "t", "modality": "radiograph", "licence": "l", "citation": "c"} | jsonl(source),
        "recipe",
    )
    salts = [Salt(secret * 2, "test") for secret in (b"first secret", b"other secret")]
    for name, salt in zip("ab", salts, strict=True):
        build(recipe, source, tmp_path / name, salt)
    with pytest.raises(MedpclipError, match="different salts") as caught:
        overlap(tmp_path / "a", tmp_path / "b")
    assert all(salt.fingerprint in str(caught.value) for salt in salts)
    pictures = overlap(tmp_path / "a", tmp_path / "b", groups=False)
    assert (pictures.near_duplicates, pictures.shared_keys) == (12, 0)
