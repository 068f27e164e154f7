"""DICOM: SEG and RTSTRUCT regions land on the right pixels of the right frames; every planted fault is counted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.readers import Entry, Fault, RawRegion, RawSample, UnusableError
from medpclip.data.readers.dicom.reader import DicomOptions, DicomReader
from medpclip.data.readers.dicom.rtstruct import rasterise
from medpclip.data.schema import Region

pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")
from pydicom import dcmread  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sr.codedict import codes  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid  # noqa: E402

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECRETS = ("DOE^JANE", "MRN77", "19630101", "St Elsewhere", "ACC55", "Dr Who")
HEIGHT, WIDTH = 12, 16
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


def base(storage: str, modality: str) -> Dataset:
    """A dataset full of what must not be seen again."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = storage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = SECRETS[:3]
    ds.InstitutionName, ds.AccessionNumber, ds.ReferringPhysicianName = SECRETS[3:]
    ds.StudyDate = ds.SeriesDate = ds.StudyTime = ds.PatientSex = ds.StudyID = ""
    ds.StudyInstanceUID, ds.Modality = "1.2.3", modality
    ds.SeriesInstanceUID, ds.SeriesNumber = "1.2.3.4", 1
    return ds


def image(position: Sequence[float] = (0, 0, 0), directions: Sequence[float] = AXIAL, **elements: Any) -> Dataset:
    ds = base(STORAGE + "2", "CT")
    ds.FrameOfReferenceUID, ds.InstanceNumber = "1.2.3.5", 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = list(position), list(directions)
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.8], 3
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = HEIGHT, WIDTH, 16, 16, 15
    ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = 1, 1, 0
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    frames = int(ds.get("NumberOfFrames", 1))
    pixels = np.arange(frames * ds.Rows * ds.Columns * ds.SamplesPerPixel)
    ds.PixelData = pixels.astype(np.int16 if ds.BitsAllocated == 16 else np.uint8).tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def put(folder: Path, ds: Dataset, name: str) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    ds.save_as(folder / name, enforce_file_format=True)
    return ds


def series(folder: Path, count: int = 3, directions: Sequence[float] = AXIAL) -> list[Dataset]:
    """Slices 3 mm apart, in files whose names run the other way."""
    normal = np.cross(directions[:3], directions[3:])
    slices = [image(np.round(np.array([-7.0, 5, 30]) + 3 * i * normal, 6), directions) for i in range(count)]
    return [put(folder, ds, f"slice{count - i}.dcm") for i, ds in enumerate(slices)]


MASKS = np.zeros((3, HEIGHT, WIDTH, 2), np.uint8)  # slices, rows, columns, segments
MASKS[0, 2:5, 3:9, 0] = 1
MASKS[2, 2:5, 3:9, 0] = 1
MASKS[1, 7:9, 0:2, 1] = 1
MASKS[2, 8:12, 10:16, 1] = 1


def describe(number: int, label: str) -> Any:
    algorithm = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    return hd.seg.SegmentDescription(
        number, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm, algorithm
    )


def segmentation(sources: list[Dataset], masks: np.ndarray = MASKS, kind: str = "BINARY", **options: Any) -> Dataset:
    given = {
        "series_instance_uid": generate_uid(),
        "series_number": 2,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "m",
        "manufacturer_model_name": "m",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    labels = [describe(1, "tumour"), describe(2, "cyst")][: masks.shape[-1]]
    return hd.seg.Segmentation(sources, masks, kind, labels, **(given | options))


def scan(folder: Path, **options: Any) -> tuple[DicomReader, list[Entry], list[Fault]]:
    reader = DicomReader(folder, DicomOptions(**options))
    found = reader.scan()
    return reader, [e for e in found if isinstance(e, Entry)], [f for f in found if isinstance(f, Fault)]


def read(folder: Path, **options: Any) -> tuple[dict[str, list[RawSample]], list[Fault]]:
    """File -> its samples; all faults."""
    reader, entries, faults = scan(folder, **options)
    samples: dict[str, list[RawSample]] = {}
    for entry in entries:
        samples[entry.image] = []
        try:
            for sample in reader.samples(entry):
                samples[entry.image].append(sample)
                faults += sample.faults
        except UnusableError as unusable:
            faults.append(unusable.fault)
    for fault in faults:
        assert not any(secret in repr(fault) for secret in SECRETS)
        assert "1.2.3" not in fault.detail + fault.key + fault.reason
    return samples, faults


def mask(region: RawRegion) -> np.ndarray:
    found = Region(1, region.label, segmentation=region.rle).mask()
    assert found is not None
    return found


def lost(faults: list[Fault]) -> dict[str, tuple[int, int]]:
    """Reason -> images and regions lost."""
    return {f.reason: (f.images, sum(g.regions for g in faults if g.reason == f.reason)) for f in faults}


def expect_masks(samples: dict[str, list[RawSample]], labels: Sequence[str] = ("tumour", "cyst")) -> None:
    for i in range(3):
        (sample,) = samples[f"slice{3 - i}.dcm"]
        expected = [(labels[s], MASKS[i, ..., s]) for s in range(2) if MASKS[i, ..., s].any()]
        assert [region.label for region in sample.regions] == [label for label, _ in expected]
        for region, (_, pixels) in zip(sample.regions, expected, strict=True):
            assert np.array_equal(mask(region), pixels)


# SEG


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_seg_of_each_kind(tmp_path: Path, kind: str) -> None:
    masks = MASKS.astype(np.float32) * 0.8 if kind == "FRACTIONAL" else MASKS
    put(tmp_path, segmentation(series(tmp_path), masks, kind), "x.seg")
    samples, faults = read(tmp_path)
    assert not faults
    expect_masks(samples)
    if kind == "FRACTIONAL":
        samples, _ = read(tmp_path, fraction=0.9)
        assert not any(sample.regions for found in samples.values() for sample in found)


def test_seg_masks_agree_with_highdicoms_reader(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path, segmentation(sources), "x.seg")
    samples, _ = read(tmp_path)
    theirs = hd.seg.segread(tmp_path / "x.seg")
    uids = [ds.SOPInstanceUID for ds in sources]
    planes = theirs.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for i in range(3):
        for region in samples[f"slice{3 - i}.dcm"][0].regions:
            assert np.array_equal(mask(region), planes[i, ..., ("tumour", "cyst").index(region.label)])


def test_compressed_seg(tmp_path: Path) -> None:
    put(tmp_path, segmentation(series(tmp_path), kind="LABELMAP", transfer_syntax_uid=RLELossless), "x.seg")
    expect_masks(read(tmp_path)[0])


def test_label_from_property_type_and_facts_for_attributes(tmp_path: Path) -> None:
    put(tmp_path, segmentation(series(tmp_path)), "x.seg")
    samples, _ = read(tmp_path, label_from="property_type")
    (region,) = samples["slice3.dcm"][0].regions
    assert region.label == "Neoplasm"
    assert region.metadata["SegmentLabel"] == "tumour"
    assert region.metadata["SegmentAlgorithmType"] == "MANUAL"


def strip_references(ds: Dataset, whole: bool = True) -> Dataset:
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    if whole:
        del ds.ReferencedSeriesSequence
        if "SourceImageSequence" in ds:
            del ds.SourceImageSequence
    return ds


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("whole", [True, False])
def test_seg_without_references_is_placed_by_its_planes(
    tmp_path: Path, directions: Sequence[float], whole: bool
) -> None:
    sources = series(tmp_path, directions=directions)
    put(tmp_path, strip_references(segmentation(sources), whole), "x.seg")
    samples, faults = read(tmp_path)
    assert not faults
    expect_masks(samples)


def test_seg_that_fits_two_series(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path, strip_references(segmentation(sources)), "x.seg")
    other = image(sources[1].ImagePositionPatient, SeriesInstanceUID="1.2.3.9")
    put(tmp_path, other, "other.dcm")
    _, faults = read(tmp_path)
    assert lost(faults) == {"annotation fits several images": (0, 1)}


def seg_fault(folder: Path, change: Any, **options: Any) -> dict[str, tuple[int, int]]:
    """What is lost when a SEG of four regions on three slices is changed."""
    sources = series(folder)
    put(folder, segmentation(sources), "x.seg")
    ds = dcmread(folder / "x.seg")  # highdicom's items may be shared between frames
    change(ds, sources)
    put(folder, ds, "x.seg")
    samples, faults = read(folder, **options)
    regions = sum(len(sample.regions) for found in samples.values() for sample in found)
    assert regions + sum(fault.regions for fault in faults) == 4
    return lost(faults)


def source_of(ds: Dataset, frame: int) -> Dataset:
    return ds.PerFrameFunctionalGroupsSequence[frame].DerivationImageSequence[0].SourceImageSequence[0]


def test_seg_of_a_missing_image(tmp_path: Path) -> None:
    ds = segmentation(series(tmp_path))
    put(tmp_path, ds, "x.seg")
    (tmp_path / "slice1.dcm").unlink()  # the third slice, with two regions
    _, faults = read(tmp_path)
    assert lost(faults) == {"image that the annotation names is missing": (0, 2)}
    for name in ("slice2.dcm", "slice3.dcm"):
        (tmp_path / name).unlink()
    put(tmp_path, strip_references(ds, whole=False), "x.seg")
    assert lost(read(tmp_path)[1]) == {"image that the annotation names is missing": (0, 4)}


def test_seg_of_another_size(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path, segmentation(sources), "x.seg")
    for i, ds in enumerate(sources):
        ds.Rows = HEIGHT - 2
        ds.PixelData = ds.PixelData[: 2 * WIDTH * (HEIGHT - 2)]
        put(tmp_path, ds, f"slice{3 - i}.dcm")
    assert lost(read(tmp_path)[1]) == {"mask is of another size than the image": (0, 4)}


def test_seg_on_another_grid(tmp_path: Path) -> None:
    def shift(ds: Dataset, sources: list[Dataset]) -> None:
        ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [-7, 5.2, 30]

    assert seg_fault(tmp_path, shift) == {"annotation lies elsewhere than the image it names": (0, 1)}


def test_seg_on_no_image(tmp_path: Path) -> None:
    def elsewhere(ds: Dataset, sources: list[Dataset]) -> None:
        strip_references(ds)
        ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [-7, 5, 31]

    assert seg_fault(tmp_path, elsewhere) == {"annotation lies on none of the images": (0, 1)}


def test_seg_of_a_frame_that_is_not_there(tmp_path: Path) -> None:
    def wrong(ds: Dataset, sources: list[Dataset]) -> None:
        source_of(ds, 1).ReferencedFrameNumber = 2

    assert seg_fault(tmp_path, wrong) == {"annotation names a frame that its image doesn't have": (0, 1)}


def test_seg_frame_derived_from_several_images(tmp_path: Path) -> None:
    def several(ds: Dataset, sources: list[Dataset]) -> None:
        derivation = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        more = Dataset()
        more.ReferencedSOPClassUID, more.ReferencedSOPInstanceUID = sources[1].SOPClassUID, sources[1].SOPInstanceUID
        derivation.SourceImageSequence.append(more)

    assert seg_fault(tmp_path, several) == {}  # its plane decides


def test_segments_without_label_description_or_number(tmp_path: Path) -> None:
    def unlabelled(ds: Dataset, sources: list[Dataset]) -> None:
        ds.SegmentSequence[0].SegmentLabel = ""

    def undescribed(ds: Dataset, sources: list[Dataset]) -> None:
        del ds.SegmentSequence[1]

    def unnumbered(ds: Dataset, sources: list[Dataset]) -> None:
        del ds.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence

    assert seg_fault(tmp_path / "a", unlabelled) == {"region without a label": (0, 2)}
    assert seg_fault(tmp_path / "b", undescribed) == {"SEG describes no segment of this number": (0, 2)}
    assert seg_fault(tmp_path / "c", unnumbered) == {"SEG frame names no segment": (0, 1)}


def test_seg_with_broken_pixels(tmp_path: Path) -> None:
    def cut(ds: Dataset, sources: list[Dataset]) -> None:
        ds.PixelData = ds.PixelData[:50]  # two frames of 24 bytes, and a bit

    assert seg_fault(tmp_path, cut) == {"SEG frame can't be decoded": (0, 2)}


def test_empty_seg_frames_are_no_regions(tmp_path: Path) -> None:
    put(tmp_path, segmentation(series(tmp_path), omit_empty_frames=False), "x.seg")
    samples, faults = read(tmp_path)
    assert not faults
    expect_masks(samples)


# Multi-frame images


def multi_frame(count: int = 4) -> Dataset:
    ds = image(NumberOfFrames=count, SOPClassUID=STORAGE + "2.1")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, keyword)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.8], 3
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], []
    for i in range(count):
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, -3.0 * i]
        content.DimensionIndexValues = [1, i + 1]
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    return ds


def test_frames_of_a_multi_frame_image(tmp_path: Path) -> None:
    source = put(tmp_path, multi_frame(), "a.dcm")
    masks = np.zeros((4, HEIGHT, WIDTH, 1), np.uint8)
    masks[1, 2:4, 2:4], masks[3, 5:9, 1:3] = 1, 1
    put(tmp_path, segmentation([source], masks), "x.seg")
    samples, faults = read(tmp_path)
    assert not faults
    found = samples["a.dcm"]
    assert [sample.part for sample in found] == ["frame 1", "frame 2", "frame 3", "frame 4"]
    assert [sample.volume and sample.volume["index"] for sample in found] == [3, 2, 1, 0]  # along the normal
    assert [sample.spacing for sample in found] == [[0.5, 0.8]] * 4
    assert [len(sample.regions) for sample in found] == [0, 1, 0, 1]
    assert np.array_equal(mask(found[3].regions[0]), masks[3, ..., 0])
    samples, _ = read(tmp_path, frames="annotated")
    assert [sample.part for sample in samples["a.dcm"]] == ["frame 2", "frame 4"]
    assert found[1].picture is not None and found[3].picture is not None
    assert np.array_equal(samples["a.dcm"][0].picture.pixels, found[1].picture.pixels)


def test_single_images_without_annotation(tmp_path: Path) -> None:
    put(tmp_path, segmentation(series(tmp_path), MASKS[..., :1]), "x.seg")
    assert read(tmp_path)[1] == []
    samples, faults = read(tmp_path, frames="annotated")
    assert [(f.file, f.reason, f.images) for f in faults] == [("slice2.dcm", "image without an annotation", 1)]
    assert [len(found) for found in samples.values()] == [1, 0, 1]


def slide(columns: int = 3, rows: int = 2) -> Dataset:
    """A TILED_FULL slide image."""
    ds = image(
        NumberOfFrames=rows * columns,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        SOPClassUID=STORAGE + "77.1.6",
        Modality="SM",
        BurnedInAnnotation="NO",
    )
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        delattr(ds, keyword)
    ds.DimensionOrganizationType = "TILED_FULL"
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = rows * HEIGHT, columns * WIDTH
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.TotalPixelMatrixFocalPlanes, ds.NumberOfOpticalPaths = 1, 1
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 10.0
    measures.PixelSpacing, measures.SliceThickness = [0.001, 0.001], 0.01
    shared.PixelMeasuresSequence = [measures]
    ds.TotalPixelMatrixOriginSequence, ds.SharedFunctionalGroupsSequence = [origin], [shared]
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    ds.ContainerIdentifier, ds.IssuerOfTheContainerIdentifierSequence = "1", []
    ds.OpticalPathSequence = [Dataset()]
    ds.OpticalPathSequence[0].OpticalPathIdentifier = "1"
    ds.ContainerTypeCodeSequence, ds.SpecimenDescriptionSequence = [], []
    return ds


@pytest.mark.parametrize("options", [{}, {"dimension_organization_type": "TILED_FULL", "omit_empty_frames": False}])
def test_tiles_of_a_slide(tmp_path: Path, options: dict[str, Any]) -> None:
    source = put(tmp_path, slide(), "a.dcm")
    whole = np.zeros((1, 2 * HEIGHT, 3 * WIDTH, 1), np.uint8)
    whole[0, HEIGHT - 2 : HEIGHT + 5, 2 * WIDTH - 4 : 2 * WIDTH + 1] = 1  # over four tiles
    put(
        tmp_path,
        segmentation([source], whole, tile_pixel_array=True, tile_size=(HEIGHT, WIDTH), **options),
        "x.seg",
    )
    samples, faults = read(tmp_path)
    assert not faults
    assert len(samples["a.dcm"]) == 6
    tiles = whole[0, ..., 0].reshape(2, HEIGHT, 3, WIDTH).swapaxes(1, 2).reshape(6, HEIGHT, WIDTH)
    for sample, tile in zip(samples["a.dcm"], tiles, strict=True):
        assert sample.volume is None
        assert len(sample.regions) == int(tile.any())
        assert all(np.array_equal(mask(region), tile) for region in sample.regions)


def test_tile_and_frame_that_contradict(tmp_path: Path) -> None:
    source = put(tmp_path, slide(), "a.dcm")
    ds = segmentation([source], np.ones((6, HEIGHT, WIDTH, 1), np.uint8))
    source_of(ds, 1).ReferencedFrameNumber = 5
    put(tmp_path, ds, "x.seg")
    assert lost(read(tmp_path)[1]) == {"annotation lies elsewhere than the image it names": (0, 1)}
    samples, faults = read(tmp_path, misnamed="place")
    assert not faults
    assert [len(sample.regions) for sample in samples["a.dcm"]] == [1] * 6


# RTSTRUCT


def contour(points: np.ndarray, uid: str | None, kind: str = "CLOSED_PLANAR") -> Dataset:
    ds = Dataset()
    ds.ContourGeometricType, ds.NumberOfContourPoints = kind, len(points)
    ds.ContourData = [f"{value:.5f}" for value in np.ravel(points)]
    if uid is not None:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = STORAGE + "2", uid
        ds.ContourImageSequence = [reference]
    return ds


def structures(rois: dict[str, list[Dataset]]) -> Dataset:
    ds = base(STORAGE + "481.3", "RTSTRUCT")
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for i, (name, contours) in enumerate(rois.items()):
        described, drawn, observed = Dataset(), Dataset(), Dataset()
        described.ROINumber, described.ROIName, described.ROIGenerationAlgorithm = i + 1, name, "MANUAL"
        described.ReferencedFrameOfReferenceUID = "1.2.3.5"
        drawn.ReferencedROINumber, drawn.ContourSequence = i + 1, contours
        observed.ReferencedROINumber, observed.RTROIInterpretedType = i + 1, "GTV"
        ds.StructureSetROISequence.append(described)
        ds.ROIContourSequence.append(drawn)
        ds.RTROIObservationsSequence.append(observed)
    return ds


def in_patient(ds: Dataset, pixels: Sequence[Sequence[float]]) -> np.ndarray:
    """Our pixel coordinates -> millimetres, by PS3.3 C.7.6.2.1.1 written out."""
    directions = np.array(ds.ImageOrientationPatient, float)
    sy, sx = (float(v) for v in ds.PixelSpacing)
    x, y = np.array(pixels, float).T - 0.5
    return (
        np.array(ds.ImagePositionPatient, float) + np.outer(x * sx, directions[:3]) + np.outer(y * sy, directions[3:])
    )


def inside(points: Sequence[Sequence[float]], x: float, y: float) -> bool:
    """Point in polygon, by counting crossings of a ray."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            odd = not odd
    return odd


def brute(polygons: Sequence[Sequence[Sequence[float]]], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.array(
        [[sum(inside(p, c + 0.5, r + 0.5) for p in polygons) % 2 == 1 for c in range(width)] for r in range(height)]
    )


OUTER = [[1.21, 1.1], [13.4, 2.3], [12.1, 10.8], [2.3, 9.9]]
INNER = [[4.1, 4.2], [9.3, 4.4], [8.8, 7.9]]
KEYHOLE = [*OUTER, OUTER[0], INNER[0], INNER[1], INNER[2], INNER[0]]


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE])
def test_contours_land_on_their_pixels(tmp_path: Path, directions: Sequence[float]) -> None:
    slices = series(tmp_path, directions=directions)
    uid = slices[1].SOPInstanceUID
    outer, inner = in_patient(slices[1], OUTER), in_patient(slices[1], INNER)
    rois = {
        "gtv": [contour(outer, uid), contour(inner, uid)],
        "keyhole": [contour(in_patient(slices[1], KEYHOLE), uid)],
        "unnamed": [contour(inner, None)],
        "point": [contour(in_patient(slices[1], [[3.25, 4.5]]), uid, "POINT")],
    }
    put(tmp_path, structures(rois), "rt")
    samples, faults = read(tmp_path)
    assert not faults
    gtv, keyhole, unnamed, point = samples["slice2.dcm"][0].regions
    assert np.array_equal(mask(gtv), brute([OUTER, INNER]))
    assert np.array_equal(mask(keyhole), brute([OUTER, INNER]))
    assert np.array_equal(mask(unnamed), brute([INNER]))
    assert [r.label for r in (gtv, keyhole, unnamed, point)] == list(rois)
    assert point.points == [[pytest.approx(3.25, abs=1e-4), pytest.approx(4.5, abs=1e-4)]]
    assert gtv.metadata == {"ROIName": "gtv", "ROIGenerationAlgorithm": "MANUAL", "RTROIInterpretedType": "GTV"}
    filled, _ = read(tmp_path, nested="fill")
    gtv, keyhole, *_ = filled["slice2.dcm"][0].regions
    assert np.array_equal(mask(gtv), brute([OUTER]))
    assert np.array_equal(mask(keyhole), brute([OUTER, INNER]))


def test_explicit_xor_stays_a_hole(tmp_path: Path) -> None:
    slices = series(tmp_path)
    uid = slices[0].SOPInstanceUID
    kinds = "CLOSEDPLANAR_XOR"
    contours = [contour(in_patient(slices[0], points), uid, kinds) for points in (OUTER, INNER)]
    put(tmp_path, structures({"a": contours}), "rt")
    (region,) = read(tmp_path, nested="fill")[0]["slice3.dcm"][0].regions
    assert np.array_equal(mask(region), brute([OUTER, INNER]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-16, 80), st.integers(-16, 80)), min_size=3, max_size=7), min_size=1, max_size=3
    )
)
def test_rasterising_equals_brute_force(polygons: list[list[tuple[int, int]]]) -> None:
    # Off the grid of centres, where both rules would have to choose a side.
    moved = [[[x / 4 + 0.01, y / 4 + 0.003] for x, y in polygon] for polygon in polygons]
    assert np.array_equal(rasterise([np.array(p) for p in moved], 9, 11), brute(moved, 9, 11))


def test_outlines_that_share_an_edge_share_no_pixel() -> None:
    left, right = np.array([[0, 0], [2.5, 0], [4.5, 6], [0, 6]]), np.array([[2.5, 0], [8, 0], [8, 6], [4.5, 6]])
    masks = [rasterise([outline], 6, 8) for outline in (left, right)]
    assert not (masks[0] & masks[1]).any()
    assert (masks[0] | masks[1]).all()


BROKEN = {
    "image that the annotation names is missing": lambda ds, p: contour(p, "1.2.3.999"),
    "contour lies outside the plane of its image": lambda ds, p: contour(p + np.array([0, 0, 2]), ds.SOPInstanceUID),
    "contour is neither closed and planar nor a point": lambda ds, p: contour(p, ds.SOPInstanceUID, "OPEN_PLANAR"),
    "polygon reaches outside the image": lambda ds, p: contour(p - np.array([3, 0, 0]), ds.SOPInstanceUID),
    "polygon has fewer than three points": lambda ds, p: contour(p[:2], ds.SOPInstanceUID),
    "contour surrounds no pixel's centre": lambda ds, p: contour(
        in_patient(ds, [[3.1, 3.1], [3.4, 3.1], [3.1, 3.4]]), ds.SOPInstanceUID
    ),
    "annotation lies on none of the images": lambda ds, p: contour(p + np.array([0, 0, 50]), None),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_contours(tmp_path: Path, reason: str) -> None:
    ds = series(tmp_path)[0]
    good = contour(in_patient(ds, OUTER), ds.SOPInstanceUID)
    put(tmp_path, structures({"good": [good], "bad": [BROKEN[reason](ds, in_patient(ds, OUTER))]}), "rt")
    samples, faults = read(tmp_path)
    assert [region.label for region in samples["slice3.dcm"][0].regions] == ["good"]
    assert [(f.file, f.key, f.reason, f.images, f.regions) for f in faults] == [
        ("rt", "ROIContourSequence[1]", reason, 0, 1)
    ]


def test_more_broken_contours(tmp_path: Path) -> None:
    ds = series(tmp_path)[0]
    points = in_patient(ds, OUTER)
    cut, endless, wrong = (contour(points, ds.SOPInstanceUID) for _ in range(3))
    cut.ContourData = cut.ContourData[:-1]
    endless.ContourData = [*cut.ContourData, "1e999"]
    wrong.ContourImageSequence[0].ReferencedFrameNumber = 3
    rois = {"a": [cut], "b": [endless], "": [contour(points, ds.SOPInstanceUID)], "c": [wrong]}
    put(tmp_path, structures(rois), "rt")
    assert lost(read(tmp_path)[1]) == {
        "contour has broken coordinates": (0, 2),
        "region without a label": (0, 1),
        "annotation names a frame that its image doesn't have": (0, 1),
    }


def test_one_bad_contour_loses_its_region_once(tmp_path: Path) -> None:
    ds = series(tmp_path)[0]
    points = in_patient(ds, OUTER)
    contours = [contour(points, ds.SOPInstanceUID), contour(points + np.array([0, 0, 2]), ds.SOPInstanceUID)]
    put(tmp_path, structures({"a": contours}), "rt")
    samples, faults = read(tmp_path)
    assert lost(faults) == {"contour lies outside the plane of its image": (0, 1)}
    assert not samples["slice3.dcm"][0].regions


def test_unnamed_contour_that_fits_two_images(tmp_path: Path) -> None:
    ds = series(tmp_path)[0]
    put(tmp_path, image(ds.ImagePositionPatient, SeriesInstanceUID="1.2.3.9"), "other.dcm")
    put(tmp_path, structures({"a": [contour(in_patient(ds, OUTER), None)]}), "rt")
    assert lost(read(tmp_path)[1]) == {"annotation fits several images": (0, 1)}


def test_contour_on_an_image_without_a_place(tmp_path: Path) -> None:
    ds = series(tmp_path)[0]
    put(tmp_path, structures({"a": [contour(in_patient(ds, OUTER), ds.SOPInstanceUID)]}), "rt")
    del ds.ImagePositionPatient
    put(tmp_path, ds, "slice3.dcm")
    assert lost(read(tmp_path)[1]) == {"image of the contour doesn't state where it lies": (0, 1)}


# Files


def test_what_is_no_image(tmp_path: Path) -> None:
    series(tmp_path, 1)
    report = base(STORAGE + "88.33", "SR")
    put(tmp_path, report, "report")
    (tmp_path / "broken.dcm").write_bytes(b"x" * 200)
    (tmp_path / "notes.docx").write_bytes(b"x")
    (tmp_path / "README.md").write_text("fine")
    _, faults = read(tmp_path)
    assert [(f.file, f.reason, f.images, f.regions) for f in faults] == [
        ("broken.dcm", "DICOM file can't be read", 1, 0),
        ("notes.docx", "file isn't DICOM", 0, 0),
        ("report", "DICOM object is neither image nor SEG nor RTSTRUCT", 0, 0),
    ]


def test_copies_count_once(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path / "z", sources[0], "copy.dcm")
    seg = segmentation(sources)
    put(tmp_path, seg, "x.seg")
    put(tmp_path, seg, "y.seg")
    outlines = (contour(in_patient(sources[0], points), sources[0].SOPInstanceUID) for points in (OUTER, INNER))
    rt = structures({"a": list(outlines)})
    put(tmp_path, rt, "rt1")
    put(tmp_path, rt, "rt2")
    samples, faults = read(tmp_path)
    assert [(f.file, f.reason, f.images, f.regions) for f in faults] == [
        ("rt2", "DICOM instance is there several times", 0, 1),
        ("y.seg", "DICOM instance is there several times", 0, 4),
        ("z/copy.dcm", "DICOM instance is there several times", 1, 0),
    ]
    assert sum(len(sample.regions) for found in samples.values() for sample in found) == 5


def test_image_without_pixels_takes_its_regions_along(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path, segmentation(sources), "x.seg")
    sources[2].PixelData = b"\0\0"
    put(tmp_path, sources[2], "slice1.dcm")
    _, faults = read(tmp_path)
    assert [(f.file, f.reason, f.images, f.regions) for f in faults] == [("slice1.dcm", "image is truncated", 1, 2)]


def test_broken_frame_takes_only_its_own_regions(tmp_path: Path) -> None:
    source = multi_frame()
    masks = np.ones((4, HEIGHT, WIDTH, 2), np.uint8) * [[[1, 0]]]
    masks[1] = 1
    put(tmp_path, segmentation([source], masks.astype(np.uint8)), "x.seg")
    source.compress(RLELossless, generate_instance_uid=False)
    from pydicom.encaps import encapsulate, generate_frames

    frames = list(generate_frames(source.PixelData, number_of_frames=4))
    frames[1] = frames[1][:66]
    source.PixelData = encapsulate(frames)
    put(tmp_path, source, "a.dcm")
    samples, faults = read(tmp_path)
    assert [sample.part for sample in samples["a.dcm"]] == ["frame 1", "frame 3", "frame 4"]
    assert [(f.file, f.key, f.images, f.regions) for f in faults] == [("a.dcm", "frame 2", 1, 2)]


def test_volume_order_and_no_order(tmp_path: Path) -> None:
    slices = series(tmp_path, directions=OBLIQUE)
    samples, _ = read(tmp_path)
    assert [samples[f"slice{3 - i}.dcm"][0].volume for i in range(3)] == [
        {"index": i, "count": 3, "axis": "slice"} for i in range(3)
    ]
    assert len({samples[name][0].metadata["volume"] for name in samples}) == 1
    again = image(slices[0].ImagePositionPatient, OBLIQUE)  # a second phase
    put(tmp_path, again, "phase2.dcm")
    samples, _ = read(tmp_path)
    assert {sample.volume for found in samples.values() for sample in found} == {None}


def test_metadata_and_nothing_else_of_the_header(tmp_path: Path) -> None:
    sources = series(tmp_path)
    put(tmp_path, segmentation(sources), "x.seg")
    outline = contour(in_patient(sources[0], OUTER), sources[0].SOPInstanceUID)
    put(tmp_path, structures({"a": [outline]}), "rt")
    reader, entries, _ = scan(tmp_path)
    for entry in entries:
        assert entry.metadata["PatientID"] == "MRN77"
        assert entry.metadata["Modality"] == "CT"
        assert set(entry.metadata) == {"PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"}
        for sample in reader.samples(entry):
            assert sample.picture is not None
            sample.metadata = {}
            seen = repr(sample).encode() + sample.picture.data
            for planted in (*SECRETS, "1.2.3", *(ds.SOPInstanceUID for ds in sources)):
                assert planted.encode() not in seen


def test_windows_by_modality(tmp_path: Path) -> None:
    series(tmp_path, 1)
    samples, _ = read(tmp_path, windows={"CT": [0, 100]})
    picture = samples["slice1.dcm"][0].picture
    assert picture is not None
    assert picture.intensity == {"window": [0.0, 100.0], "source": "option", "bits": 16}


@pytest.mark.parametrize("options", [{"windows": {"CT": [1]}}, {"windows": {"CT": [5, 1]}}, {"fraction": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        DicomOptions(**options)


def test_real_files() -> None:
    root = Path(os.environ.get("MEDPCLIP_DATA", "/nowhere")) / "dicom_small"
    if not root.is_dir():
        pytest.skip("MEDPCLIP_DATA doesn't name a folder with dicom_small")
    samples, faults = read(root)
    # Two CT slices and one more, a radiograph, and two slides of 25 tiles.
    assert {name.split("/")[-1]: len(found) for name, found in samples.items()} == {
        "ct_image.dcm": 1,
        "dx_image.dcm": 1,
        "sm_image.dcm": 25,
        "sm_image_jpegls.dcm": 25,
        "ct_1.dcm": 1,
        "ct_2.dcm": 1,
    }
    regions = [region for found in samples.values() for sample in found for region in sample.regions]
    files = [region.file.split("/")[-1] for region in regions]
    assert {file: files.count(file) for file in files} == {
        "seg_image_ct_binary_single_frame.dcm": 1,
        "seg_image_sm_control.dcm": 4,
        "seg_image_sm_control_labelmap.dcm": 20,
        "invalid_reference_rt.dcm": 8,
        "rt.dcm": 1,
    }
    assert lost(faults) == {
        "DICOM object is neither image nor SEG nor RTSTRUCT": (0, 0),
        # The broken structure sets share their UID, and name a slice that isn't there.
        "DICOM instance is there several times": (0, 12),
        "image that the annotation names is missing": (0, 4),
        # Frame numbers count down the columns there, tile positions along the rows.
        "annotation lies elsewhere than the image it names": (0, 16),
    }
    (bone,) = samples["highdicom/ct_image.dcm"][0].regions
    hounsfield = dcmread(root / "highdicom/ct_image.dcm").pixel_array - 1024.0
    assert np.median(hounsfield[mask(bone)]) > 250 > np.median(hounsfield[~mask(bone)])
