"""DICOM pixels -> pictures: golden windows, every photometric interpretation, compression, frames, and no header value."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data.pictures import Picture, PictureError, read_picture, read_size
from medpclip.data.pictures.dicom import read_dicom_frames, read_dicom_picture
from medpclip.data.pictures.dicom_headers import FrameGroups, is_dicom, pixel_spacing, read_header, suspects_text

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
SECRET = "DOE^JANE"
RAMP = np.arange(-50, 70, dtype=np.int16).reshape(10, 12) * 20  # -1000 .. 1380


def dataset(pixels: np.ndarray, **elements: Any) -> Dataset:
    """An image of one or more frames: (H, W), (H, W, 3) as RGB or (N, H, W) with `NumberOfFrames`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CT
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = SECRET, SECRET, "19630101"
    ds.Modality = "CT"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OW"
    return ds


def put(folder: Path, ds: Dataset, name: str = "a.dcm") -> Path:
    ds.save_as(folder / name, enforce_file_format=True)
    return folder / name


def read(folder: Path, pixels: np.ndarray, windows: dict[str, tuple[float, float]] | None = None, **elements: Any):
    return read_dicom_picture(put(folder, dataset(pixels, **elements)), windows)


def item(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def table(entries: list[int], start: int, bits: int) -> Dataset:
    ds = Dataset()
    ds.add_new("LUTDescriptor", "SS" if start < 0 else "US", [len(entries), start, bits])
    ds.add_new("LUTData", "OW", np.array(entries, np.uint16).tobytes())
    return ds


def test_rescale_and_linear_window(tmp_path: Path) -> None:
    stored = (RAMP + 1024).astype(np.uint16)
    picture = read(
        tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=["40", "9"], WindowWidth="400"
    )
    # PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    expected = np.clip(((RAMP - 39.5) / 399 + 0.5) * 255, 0, 255)
    assert np.abs(picture.pixels - expected).max() <= 0.5
    assert picture.intensity == {"window": [-160.0, 239.0], "source": "file", "bits": 16}
    assert picture.size == (12, 10)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.data))), picture.pixels)


def test_slope_counts_before_the_window(tmp_path: Path) -> None:
    picture = read(tmp_path, RAMP, {"CT": (-500, 500)}, RescaleSlope="0.5", RescaleIntercept="10")
    expected = np.clip((RAMP * 0.5 + 10 + 500) / 1000 * 255, 0, 255)
    assert np.abs(picture.pixels - expected).max() <= 0.5
    assert picture.intensity == {"window": [-500.0, 500.0], "source": "option", "bits": 16}


def test_window_of_another_modality_is_not_ours(tmp_path: Path) -> None:
    picture = read(tmp_path, RAMP, {"MR": (0, 1)}, WindowCenter=0, WindowWidth=100)
    assert picture.intensity is not None and picture.intensity["window"] == [-50.0, 49.0]


def test_linear_exact_and_sigmoid(tmp_path: Path) -> None:
    exact = read(tmp_path, RAMP, WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT")
    assert np.abs(exact.pixels - np.clip(RAMP / 200 * 255, 0, 255)).max() <= 0.5
    assert exact.intensity is not None and exact.intensity["window"] == [0.0, 200.0]
    sigmoid = read(tmp_path, RAMP, WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert np.abs(sigmoid.pixels - 255 / (1 + np.exp(-4 * (RAMP - 100.0) / 200))).max() <= 0.5
    assert sigmoid.intensity is not None and sigmoid.intensity["function"] == "sigmoid"


def test_percentiles_where_the_file_has_no_window(tmp_path: Path) -> None:
    for broken in ({}, {"WindowCenter": 10, "WindowWidth": 0}, {"WindowCenter": 10}):
        picture = read(tmp_path, RAMP, **broken)
        assert picture.intensity is not None
        low, high = np.percentile(RAMP, (0.5, 99.5))
        assert picture.intensity["window"] == [low, high]
        assert (picture.intensity["source"], picture.intensity["percentiles"]) == ("percentiles", [0.5, 99.5])
        assert np.abs(picture.pixels - np.clip((RAMP - low) / (high - low) * 255, 0, 255)).max() <= 0.51


def test_monochrome1_is_inverted_and_padding_is_black(tmp_path: Path) -> None:
    stored = np.array([[0, 120], [200, 4095]], np.uint16)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    elements |= {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
    assert read(tmp_path, stored, **elements).pixels.tolist() == [[255, 102], [0, 0]]
    stored[1, 1] = 0
    picture = read(tmp_path, stored, **elements, PixelPaddingValue=0)
    assert picture.pixels.tolist() == [[0, 102], [0, 0]]
    assert picture.intensity is not None and picture.intensity["bits"] == 12


def test_padding_takes_no_part_in_percentiles(tmp_path: Path) -> None:
    stored = RAMP.copy()
    stored[:5] = -2000
    stored[5, 0] = -1990
    picture = read(tmp_path, stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    inside = stored[stored > -1990]
    assert picture.intensity is not None
    assert picture.intensity["window"] == list(np.percentile(inside, (0.5, 99.5)))
    assert not picture.pixels[:5].any()


def test_signed_12_bits(tmp_path: Path) -> None:
    stored = np.array([[-2048, -1], [0, 2047]], np.int16)
    # What lies above the stored bits is not part of the value.
    packed = (stored.astype(np.int32) & 0x0FFF).astype(np.uint16).view(np.int16)
    picture = read(tmp_path, packed, {"CT": (-2048, 2047)}, BitsStored=12, HighBit=11)
    assert picture.pixels.tolist() == [[0, 127], [128, 255]]


def test_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    grey = np.arange(120, dtype=np.uint8).reshape(10, 12)
    picture = read(tmp_path, grey)
    assert np.array_equal(picture.pixels, grey)
    assert picture.intensity is None
    assert np.array_equal(read(tmp_path, grey, WindowCenter=128, WindowWidth=256).pixels, grey)


def test_modality_and_voi_tables(tmp_path: Path) -> None:
    stored = np.array([[0, 10, 11], [12, 13, 255]], np.uint8)
    modality = table([1000, 2000, 3000], 10, 16)
    picture = read(tmp_path, stored, {"CT": (1000, 3000)}, ModalityLUTSequence=[modality])
    assert picture.pixels.tolist() == [[0, 0, 128], [255, 255, 255]]
    voi = table([0, 512, 1023], 11, 10)
    picture = read(tmp_path, stored, VOILUTSequence=[voi])
    assert picture.pixels.tolist() == [[0, 0, 0], [128, 255, 255]]
    assert picture.intensity == {"window": [11.0, 13.0], "source": "file", "bits": 8, "function": "table"}


def test_voi_table_below_zero(tmp_path: Path) -> None:
    stored = np.array([[0, 1000, 1024, 2000]], np.uint16)
    voi = table(list(range(256)), -128, 8)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [voi]}
    assert read(tmp_path, stored, **elements).pixels.tolist() == [[0, 104, 128, 255]]
    unsigned = table(list(range(256)), 0x10000 - 128, 8)  # the descriptor's type is ambiguous
    assert read(tmp_path, stored, **elements | {"VOILUTSequence": [unsigned]}).pixels.tolist() == [[0, 104, 128, 255]]


RGB = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)


def test_colours(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, RGB).pixels, RGB)
    ybr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    picture = read(tmp_path, np.ascontiguousarray(ybr), PhotometricInterpretation="YBR_FULL")
    assert np.abs(picture.pixels.astype(int) - RGB).max() <= 3
    deep = read(tmp_path, RGB.astype(np.uint16) << 4, BitsStored=12, HighBit=11)
    assert np.array_equal(deep.pixels, RGB)
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    ds = dataset(RGB, PlanarConfiguration=1)
    ds.PixelData = planes.tobytes()
    assert np.array_equal(read_dicom_picture(put(tmp_path, ds)).pixels, RGB)


def test_palette(tmp_path: Path) -> None:
    index = np.array([[0, 1], [2, 3]], np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint16)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = (colours[:, channel] * 257).tobytes()
    assert np.array_equal(read(tmp_path, index, **elements).pixels, colours[index])


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("pixels", [RAMP, RGB, RGB[..., 0].copy()])
def test_lossless_compression_changes_nothing(tmp_path: Path, pixels: np.ndarray, syntax: UID) -> None:
    pixels = np.tile(pixels, (4, 4, 1)[: pixels.ndim])  # a JPEG 2000 encoder wants 32 pixels
    ds = dataset(pixels, WindowCenter=0, WindowWidth=1000)
    plain = read_dicom_picture(put(tmp_path, ds))
    if syntax == JPEG2000Lossless:
        openjpeg = pytest.importorskip("openjpeg.utils")
        frame = openjpeg.encode_array(pixels, use_mct=False)
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        ds["PixelData"].VR = "OB"
    elif not syntax.is_deflated:
        ds.compress(syntax)
    ds.file_meta.TransferSyntaxUID = syntax
    packed = read_dicom_picture(put(tmp_path, ds, "b.dcm"))
    assert np.array_equal(packed.pixels, plain.pixels)
    assert packed.digest != plain.digest  # another file


def test_jpeg_baseline(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(RGB[:3, :3]).resize((48, 40), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=95)
    ds = dataset(smooth, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    picture = read_dicom_picture(put(tmp_path, ds))
    assert np.abs(picture.pixels.astype(int) - np.asarray(Image.open(stream))).max() <= 2


def from_pydicom(name: str) -> Path:
    """A file that pydicom itself brings along."""
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom doesn't bring {name}")
    return Path(path)


def test_scanner_files_in_all_syntaxes_look_alike() -> None:
    plain = read_picture(from_pydicom("MR_small.dcm"))
    for kind in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit"):
        assert np.array_equal(read_picture(from_pydicom(f"MR_small_{kind}.dcm")).pixels, plain.pixels), kind
    plain = read_picture(from_pydicom("SC_rgb_rle.dcm"))
    for name in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        other = read_picture(from_pydicom(name))  # JPEG lossless, JPEG baseline, sub-sampled
        assert np.abs(other.pixels.astype(int) - plain.pixels).mean() < 3, name


def test_compression_without_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = dataset(RAMP)
    ds.compress(JPEGLSLossless)
    path = put(tmp_path, ds)
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert caught.value.reason == "DICOM compression can't be decoded here"
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")  # MPEG2
    with pytest.raises(PictureError) as caught:
        read_picture(put(tmp_path, ds))
    assert caught.value.reason == "DICOM compression can't be decoded here"
    with pytest.raises(PictureError, match="DICOM compression can't be decoded here"):
        read_picture(from_pydicom("JPGExtended.dcm"))  # 12-bit JPEG


def multi_frame(pixels: np.ndarray) -> Dataset:
    """An enhanced CT: slope shared, intercepts no, windows and positions per frame."""
    ds = dataset(pixels, NumberOfFrames=len(pixels))
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[2, 0.5])])
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=i + 1, RescaleIntercept=0, RescaleType="HU")],
            FrameVOILUTSequence=[item(WindowCenter=0, WindowWidth=200 * (i + 1), VOILUTFunction="LINEAR_EXACT")],
        )
        for i in range(len(pixels))
    ]
    return ds


def test_frames_have_their_own_slope_and_window(tmp_path: Path) -> None:
    path = put(tmp_path, multi_frame(np.stack([RAMP, RAMP])))
    first, second = (p for p in read_dicom_frames(path, [0, 1]) if isinstance(p, Picture))
    assert np.array_equal(first.pixels, second.pixels)  # slope and window grew alike
    assert first.intensity != second.intensity
    assert first.digest != second.digest
    header = read_header(path)
    assert pixel_spacing(header, FrameGroups(header), 1) == [2.0, 0.5]
    with pytest.raises(PictureError, match="image file has several frames"):
        read_picture(path)


def test_one_broken_frame_does_not_take_the_others(tmp_path: Path) -> None:
    ds = dataset(np.stack([RAMP, RAMP + 1, RAMP + 2, RAMP + 3]), NumberOfFrames=4, WindowCenter=0, WindowWidth=99)
    whole = list(read_dicom_frames(put(tmp_path, ds), range(4)))
    ds.compress(RLELossless)
    frames = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=4))
    frames[1] = frames[1][:70]
    ds.PixelData = pydicom.encaps.encapsulate(frames)
    found = list(read_dicom_frames(put(tmp_path, ds), [3, 1, 0]))
    assert isinstance(found[1], PictureError)
    for picture, i in ((found[0], 3), (found[2], 0)):
        expected = whole[i]
        assert isinstance(picture, Picture) and isinstance(expected, Picture)
        assert np.array_equal(picture.pixels, expected.pixels)


def test_fewer_frames_than_stated(tmp_path: Path) -> None:
    ds = dataset(np.stack([RAMP, RAMP]), NumberOfFrames=2)
    ds.compress(RLELossless)
    frames = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=2))
    ds.PixelData = pydicom.encaps.encapsulate(frames[:1])
    found = list(read_dicom_frames(put(tmp_path, ds), [0, 1]))
    assert [isinstance(p, PictureError) for p in found] == [False, True]


def reason(path: Path) -> str:
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert SECRET not in caught.value.reason + caught.value.detail
    return caught.value.reason


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"not DICOM")
    assert reason(tmp_path / "x.dcm") == "DICOM file can't be read"
    assert reason(tmp_path / "none.dcm") == "DICOM file can't be read"
    ds = dataset(RAMP)
    del ds.Rows
    assert reason(put(tmp_path, ds)) == "DICOM file holds no image"
    ds = dataset(RAMP)
    del ds.PixelData
    assert reason(put(tmp_path, ds)) == "image can't be decoded"
    path = put(tmp_path, dataset(RAMP))
    path.write_bytes(path.read_bytes()[:-60])
    assert reason(path) == "image is truncated"
    ds = dataset(RAMP)
    ds.PixelData = ds.PixelData[:-60]
    ds.DataSetTrailingPadding = b"x" * 100  # not pixels
    assert reason(put(tmp_path, ds)) == "image is truncated"
    assert reason(put(tmp_path, dataset(RAMP, PhotometricInterpretation="HSV"))) == (
        "DICOM photometric interpretation is not supported"
    )
    assert reason(put(tmp_path, dataset(RAMP, NumberOfFrames=2_000_000_000))) == "DICOM file can't be read"
    nowhere = np.full((4, 4), np.nan, np.float32)
    ds = dataset(nowhere)
    ds.FloatPixelData = ds.PixelData
    del ds.PixelData
    assert reason(put(tmp_path, ds)) == "image has no finite value"


def test_known_by_its_mark_whatever_its_name(tmp_path: Path) -> None:
    for name in ("IM0001", "a.png", "b.DICOM"):
        path = put(tmp_path, dataset(RGB), name)
        assert is_dicom(path)
        assert np.array_equal(read_picture(path).pixels, RGB)
        assert read_size(path) == (12, 10)


def test_nothing_of_the_header_gets_into_the_picture(tmp_path: Path) -> None:
    picture = read(tmp_path, RAMP, StudyDate="19990101", InstitutionName="St Elsewhere")
    for planted in (SECRET, "19990101", "Elsewhere", "1.2.3.4", "19630101"):
        assert planted.encode() not in picture.data
        assert planted not in repr((picture.intensity, picture.burned_in, picture.extension))


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"Modality": "US"}, True),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"Modality": "ES", "BurnedInAnnotation": ""}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6", "Modality": "SM"}, False),
        ({"Modality": "XA"}, False),
        ({"Modality": "XA", "ConversionType": "WSD"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
    ],
)
def test_suspicion_of_burned_in_text(tmp_path: Path, elements: dict[str, Any], expected: bool) -> None:
    assert suspects_text(dataset(RAMP, **elements)) is expected
    assert read(tmp_path, RAMP, **elements).burned_in is expected


def test_spacing(tmp_path: Path) -> None:
    def spacing(**elements: Any) -> list[float] | None:
        ds = dataset(RAMP, **elements)
        return pixel_spacing(ds, FrameGroups(ds), 0)

    assert spacing() is None
    assert spacing(PixelSpacing=["0.7", "0.5"], ImagerPixelSpacing=[1, 1]) == [0.7, 0.5]
    assert spacing(ImagerPixelSpacing=[0.2, 0.1]) == [0.2, 0.1]
    assert spacing(PixelSpacing=[0, 1]) is None
