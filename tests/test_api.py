"""The Python interface against a computation by hand, for every kind of input; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import medpclip
from medpclip.api import TEMPLATES, Answer, Model
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, Prompts
from medpclip.models.load import build_model

LABELS = ["liver", "left kidney", "red blood cell"]
WIDTH, HEIGHT = 90, 60


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny model whose fusion has left its zeros, so that prompts matter."""
    torch.manual_seed(0)
    region_clip = build_model(ModelConfig(trunk="medpclip-tiny-16", fusion=FusionConfig(prompt_dim=64)))
    with torch.no_grad():
        for parameter in region_clip.fusion.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        region_clip.region_logit_scale.fill_(1.5)
    return Model(region_clip)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def padded_pixels(model: Model, image: np.ndarray) -> torch.Tensor:
    """Padding, resizing and normalising, written out: 90x60 lies in the middle of a 90x90 square."""
    preprocess = model.region_clip.preprocess
    square = np.empty((WIDTH, WIDTH, 3), np.uint8)
    square[:] = [int(channel * 255) for channel in preprocess.mean]
    square[15:75] = image
    size = preprocess.image_size
    small = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255
    normal = (small - np.array(preprocess.mean)) / np.array(preprocess.std)
    return torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()


def text_embeddings(model: Model, labels: list[str], templates: tuple[str, ...] = TEMPLATES) -> torch.Tensor:
    rows = []
    for label in labels:
        tokens = model.region_clip.tokenizer([t.replace("{name}", label) for t in templates])
        rows.append(F.normalize(model.region_clip.encode_text(tokens).mean(0), dim=0))
    return torch.stack(rows)


@torch.no_grad()
def test_whole_image_is_the_softmax_of_scaled_cosines(model: Model, image: np.ndarray) -> None:
    answer = model.classify(image, LABELS)
    embedding = model.region_clip.encode_image(padded_pixels(model, image))[0]
    cosines = text_embeddings(model, LABELS) @ embedding
    expected = (model.region_clip.clip.logit_scale.exp() * cosines).softmax(0)
    assert [answer.probabilities[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [answer.similarities[label] for label in LABELS] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert answer.label == LABELS[int(expected.argmax())]
    assert answer.probability == max(answer.probabilities.values())
    assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)


def prompts_by_hand(model: Model, mask: np.ndarray) -> Prompts:
    """A box, a click, a mask, and all together, with one point off the region: 15 rows of padding above the image."""
    grid = model.region_clip.mask_grid
    prompts = Prompts.empty(1, 4, 2, grid)
    box = torch.tensor([9.0, 0 + 15, 45, 30 + 15]) / 90
    prompts.boxes[0, [0, 3]] = box
    prompts.box_valid[0, [0, 3]] = True
    prompts.points[0, [1, 3], 0] = torch.tensor([18.0, 45 + 15]) / 90
    prompts.point_labels[0, [1, 3], 0] = 1
    prompts.points[0, 3, 1] = torch.tensor([80.0, 59 + 15]) / 90
    prompts.point_labels[0, 3, 1] = 0
    square = np.zeros((WIDTH, WIDTH), np.float32)
    square[15:75] = mask
    fine = square.repeat(grid, 0).repeat(grid, 1)  # a cell is then 90 x 90 whole ones
    coverage = fine.reshape(grid, WIDTH, grid, WIDTH).mean((1, 3))
    prompts.masks[0, [2, 3]] = torch.from_numpy(coverage)
    prompts.mask_valid[0, [2, 3]] = True
    return prompts


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:33, 20:71] = True
    return mask


@torch.no_grad()
def test_regions_of_a_wide_image_lie_where_they_were_given(model: Model, image: np.ndarray, mask: np.ndarray) -> None:
    prompts = prompts_by_hand(model, mask)
    expected = model.region_clip.encode_regions(padded_pixels(model, image), prompts)[1][0]
    combined = {"box": [9, 0, 45, 30], "points": [(18, 45), (80, 59)], "labels": [1, 0], "mask": mask}
    got = np.concatenate(
        [
            model.embed_regions(image, boxes=[[9, 0, 45, 30]]),
            model.embed_regions(image, points=[(18, 45)]),
            model.embed_regions(image, masks=[mask]),
            model.embed_regions(image, regions=[combined]),
        ]
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    # The prompts differ, so a mix-up would show.
    assert np.abs(got[:, None] - got[None]).max(-1)[~np.eye(4, dtype=bool)].min() > 1e-3

    answers = model.classify(image, LABELS, boxes=[[9, 0, 45, 30], [30, 20, 60, 50]])
    cosines = text_embeddings(model, LABELS) @ expected[0]
    chances = (cosines * np.exp(1.5)).softmax(0)
    assert len(answers) == 2
    assert [answers[0].probabilities[label] for label in LABELS] == pytest.approx(chances.tolist(), abs=1e-5)


def test_crops_are_cut_from_the_picture_as_it_was_given() -> None:
    """A crop of a large picture has details that the picture as the model sees it has not."""
    torch.manual_seed(0)
    model = Model(build_model(ModelConfig(trunk="medpclip-tiny-16", fusion=FusionConfig("crop"))))
    picture = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    square = picture[100:200, 300:400]  # a quarter more than the box, each way from its middle
    expected = model.embed_image(np.ascontiguousarray(square))
    got = model.embed_regions(picture, boxes=[[310, 110, 390, 190], [10, 10, 50, 40]])
    np.testing.assert_allclose(got[0], expected, atol=4e-3)  # torch's resize and Pillow's
    assert np.abs(got[1] - expected).max() > 2e-2
    around_click = model.embed_regions(picture, points=[(350, 150)])[0]
    np.testing.assert_allclose(around_click, model.embed_image(picture[75:225, 275:425]), atol=4e-3)
    assert len(model.classify(picture, LABELS, boxes=[[310, 110, 390, 190]])) == 1


@torch.no_grad()
def test_a_glimpse_of_many_regions_goes_with_the_right_one() -> None:
    """More regions than a pass takes: each is answered as if it were alone."""
    torch.manual_seed(0)
    fusion = FusionConfig(prompt_dim=64, glimpse=2)
    region_clip = build_model(ModelConfig(trunk="medpclip-tiny-16", fusion=fusion))
    for parameter in region_clip.fusion.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.3)
    model = Model(region_clip)
    picture = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    boxes = [[x, y, x + 12, y + 9] for x in range(0, 110, 11) for y in range(0, 80, 11)]
    assert len(boxes) > 64
    got = model.embed_regions(picture, boxes=boxes)
    for place in (0, 63, 64, len(boxes) - 1):
        np.testing.assert_allclose(got[place], model.embed_regions(picture, boxes=[boxes[place]])[0], atol=1e-5)
    assert np.abs(got[0] - got[64]).max() > 1e-3


def test_a_tall_image_is_padded_left_and_right(model: Model, image: np.ndarray) -> None:
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    square = np.empty((WIDTH, WIDTH, 3), np.uint8)
    square[:] = model.region_clip.preprocess.fill
    square[:, 15:75] = tall
    on_square = model.embed_regions(square, boxes=[[20, 40, 50, 80]], points=None)
    np.testing.assert_allclose(model.embed_regions(tall, boxes=[[5, 40, 35, 80]]), on_square, atol=1e-5)
    np.testing.assert_allclose(model.embed_image(tall), model.embed_image(square), atol=1e-6)


def test_all_kinds_of_pictures_are_the_same_picture(model: Model, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture = Image.fromarray(image)
    picture.save(path)
    alpha = np.concatenate([image, np.full((HEIGHT, WIDTH, 1), 7, np.uint8)], axis=2)
    chw = torch.from_numpy(image).permute(2, 0, 1)
    same: list[Any] = [image, str(path), path, picture, picture.convert("RGBA"), alpha, chw, chw.float() / 255,
                       chw.double() / 255, (image / 255).astype(np.float32), image[::-1][::-1]]  # fmt: skip
    expected = np.tile(model.embed_image(image), (len(same), 1))
    np.testing.assert_allclose(model.embed_images(same), expected, atol=1e-6)


def test_all_kinds_of_grey_are_the_same_grey(model: Model, image: np.ndarray) -> None:
    grey = image[..., 0]
    repeated = model.embed_image(np.repeat(grey[..., None], 3, axis=2))
    picture = Image.fromarray(grey)
    palette = Image.fromarray(grey, mode="P")
    palette.putpalette([value for value in range(256) for _ in range(3)])
    for one in (grey, grey[..., None], picture, picture.convert("LA"), palette, torch.from_numpy(grey)[None]):
        np.testing.assert_allclose(model.embed_image(one), repeated, atol=1e-6)


def test_deep_pictures_are_windowed_as_the_shards_were(model: Model, tmp_path: Path) -> None:
    deep = (np.random.default_rng(1).random((40, 40)) * 4000).astype(np.uint16)
    low, high = np.percentile(deep, (0.5, 99.5))
    windowed = np.rint(np.clip((deep - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(deep)
    picture.save(tmp_path / "deep.png")
    for one in (picture, tmp_path / "deep.png", Image.fromarray(deep.astype(np.float32))):
        np.testing.assert_allclose(model.embed_image(one), model.embed_image(windowed), atol=1e-6)


def test_boxes_points_and_masks_take_arrays_and_tensors(model: Model, image: np.ndarray, mask: np.ndarray) -> None:
    boxes = [[9, 0, 45, 30], [1.5, 2, 60, 50]]
    expected = model.embed_regions(image, boxes=boxes)
    for given in (np.array(boxes), torch.tensor(boxes), tuple(map(tuple, boxes))):
        np.testing.assert_array_equal(model.embed_regions(image, boxes=given), expected)
    expected = model.embed_regions(image, masks=[mask])
    for given in (mask[None], torch.from_numpy(mask)[None], [mask.astype(np.uint8) * 255], [Image.fromarray(mask)]):
        np.testing.assert_array_equal(model.embed_regions(image, masks=given), expected)
    half_off = model.embed_regions(image, boxes=[[-0.5, 0, 90.5, 60]])  # rounded outwards: clipped
    np.testing.assert_array_equal(half_off, model.embed_regions(image, boxes=[[0, 0, 90, 60]]))


def test_many_regions_go_in_chunks(model: Model, image: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    points = rng.random((150, 2)) * (WIDTH, HEIGHT)
    together = model.embed_regions(image, points=points)
    assert together.shape[0] == 150
    for i in (0, 63, 64, 149):
        np.testing.assert_allclose(together[i], model.embed_regions(image, points=points[[i]])[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_texts(model: Model) -> None:
    with torch.no_grad():
        expected = text_embeddings(model, LABELS, ("a {name} here",)).numpy()
    np.testing.assert_allclose(model.embed_text(LABELS, ["a {name} here"]), expected, atol=1e-6)
    first = model.embed_text(LABELS)
    first[:] = 0  # the caller's copy; what is remembered stays
    np.testing.assert_allclose(np.linalg.norm(model.embed_text(LABELS), axis=1), 1, atol=1e-6)
    assert np.array_equal(model.embed_text(["{0} {name}"], ["{name}"]), model.embed_text(["{0} {name}"], ("{name}",)))


def test_answers_read_well() -> None:
    chances = {name: 1 / 7 for name in "abcdefg"}
    assert repr(Answer("a", 1 / 7, {"a": 0.75, "b": 0.25}, {})) == "Answer(a 0.750, b 0.250)"
    assert repr(Answer("a", 1 / 7, chances, chances)).endswith("e 0.143, and 2 more)")


def test_load_is_lazy_and_says_when_weights_are_random() -> None:
    with pytest.warns(UserWarning, match="random weights"):
        model = medpclip.load("medpclip-tiny-16", device="auto")
    assert repr(model).startswith("Model(medpclip-tiny-16, region_tokens, 128 px, c")
    with pytest.raises(MedpclipError, match="device"):
        medpclip.load("medpclip-tiny-16", device="abacus")
    with pytest.raises(MedpclipError, match="no such file or folder"):
        medpclip.load("runs/of/nobody")


GREY = np.zeros((HEIGHT, WIDTH), np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "nowhere.png: no such image file"),
        (np.zeros((5, 5), bool), "values are bool"),
        (np.zeros((5, 5), np.int64), "values are int64"),
        (np.zeros((5, 5, 2), np.uint8), r"array is \(5, 5, 2\)"),
        (np.zeros((3, 5, 5), np.uint8), r"array is \(3, 5, 5\)"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.array([[0.0, 1.5]]), r"from 0 to 1.5, expected \[0, 1\]"),
        (np.array([[0.0, np.nan]]), r"expected \[0, 1\]"),
        (torch.zeros(5, 5, 3), r"tensor is \(5, 5, 3\)"),
        (torch.zeros(2, 3, 5, 5), "one image at a time"),
        (torch.full((3, 4, 4), 2.0), "expected"),
        (None, "NoneType is no picture"),
    ],
)
def test_refuses_pictures(model: Model, image: Any, message: str) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        model.classify(image, LABELS)
    assert "\n" not in str(caught.value)


def test_refuses_files_that_the_build_would_refuse(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nonsense")
    with pytest.raises(MedpclipError, match=r"broken.jpg: image can't be decoded"):
        model.embed_image(tmp_path / "broken.jpg")
    turned = Image.fromarray(GREY)
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(MedpclipError, match="EXIF orientation"):
        model.embed_image(tmp_path / "turned.jpg")
    with Image.open(tmp_path / "turned.jpg") as picture, pytest.raises(MedpclipError, match="EXIF orientation"):
        model.embed_image(picture)


EMPTY = np.zeros((HEIGHT, WIDTH), bool)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"boxes": []}, "boxes: the list is empty"),
        ({"boxes": [9, 0, 45, 30]}, r"boxes\[0\]: box is 9, expected 4 finite numbers"),
        ({"boxes": [[9, 0, 45]]}, "expected 4 finite numbers"),
        ({"boxes": [[0, 0, 5, 5], [9, 0, 9, 30]]}, r"boxes\[1\]: box .* is empty"),
        ({"boxes": [[45, 0, 9, 30]]}, "x1 < x2"),
        ({"boxes": [[0, 0, 91, 30]]}, "outside the image, which is 90x60"),
        ({"boxes": [[0, float("nan"), 9, 30]]}, "finite"),
        ({"boxes": ["abcd"]}, "finite numbers"),
        ({"boxes": 3}, "boxes: 3 given, expected a list"),
        ({"points": [(5, 61)]}, r"points\[0\]: point \(5.0, 61.0\) lies outside"),
        ({"points": (5, 6)}, r"expected 2 finite numbers \(x, y\)"),
        ({"masks": [EMPTY]}, r"masks\[0\]: mask is empty"),
        ({"masks": [EMPTY.T]}, r"mask is \(90, 60\), expected \(H, W\) = \(60, 90\)"),
        ({"masks": EMPTY}, r"mask is \(90,\)"),
        ({"masks": [[[1], [1, 2]]]}, r"mask is \(0,\)"),
        ({"masks": [np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)]}, "one mask per region"),
        ({"boxes": [[0, 0, 5, 5]], "points": [(1, 1)]}, "boxes and points are both given"),
        ({"regions": [{"bbox": [0, 0, 5, 5]}]}, r"regions\[0\]: unknown key 'bbox'; known: box, points"),
        ({"regions": [{}]}, "nothing points at the region"),
        ({"regions": [[0, 0, 5, 5]]}, "expected a mapping"),
        ({"regions": {"box": [0, 0, 5, 5]}}, "expected a list"),
        ({"regions": [{"points": [(1, 1)], "labels": [0]}]}, "nothing points at the region"),
        ({"regions": [{"points": [(1, 1)], "labels": [1, 0]}]}, "labels are"),
        ({"regions": [{"points": [(1, 1)], "labels": 1}]}, "labels are"),
        ({"regions": [{"points": [(1, 1)], "labels": [2]}]}, "labels are"),
        ({"regions": [{"box": [0, 0, 5, 5], "labels": [1]}]}, "points are missing"),
    ],
)
def test_refuses_regions(model: Model, regions: dict[str, Any], message: str) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        model.classify(GREY, LABELS, **regions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], TEMPLATES, "labels: the list is empty"),
        ("liver", TEMPLATES, "labels: 'liver' is no list"),
        (["liver"], TEMPLATES, "only 'liver' is given"),
        (["liver", ""], TEMPLATES, "'' is no text"),
        (["liver", 3], TEMPLATES, "3 is no text"),
        (["liver", "liver"], TEMPLATES, "given twice"),
        (["liver", "Liver"], TEMPLATES, "'liver' and 'Liver' are the same to the tokenizer"),
        (["very " * 50 + "small", "very " * 50 + "large"], TEMPLATES, "the same to the tokenizer"),
        (LABELS, [], "templates: the list is empty"),
        (LABELS, "a {name}", "is no list"),
        (LABELS, ["a thing"], "must have the fill-in {name}"),
        (LABELS, ["{name} {modality}"], "and no other"),
        (LABELS, ["{name"], "malformed"),
    ],
)
def test_refuses_words(model: Model, labels: Any, templates: Any, message: str) -> None:
    with pytest.raises(MedpclipError, match=message):
        model.classify(GREY, labels, templates=templates)


def test_refuses_lists_that_are_none(model: Model) -> None:
    for single in ("image.png", Path("image.png"), Image.fromarray(GREY), GREY, torch.zeros(3, 8, 8)):
        with pytest.raises(MedpclipError, match="put it into a list"):
            model.embed_images(single)
    with pytest.raises(MedpclipError, match="images: the list is empty"):
        model.embed_images([])
    with pytest.raises(MedpclipError, match="no region is given"):
        model.embed_regions(GREY)


def test_exports_the_image_tower(model: Model, tmp_path: Path) -> None:
    report = model.export_clip_vision(tmp_path / "tower")
    assert report.out == tmp_path / "tower"
    assert (tmp_path / "tower" / "config.json").is_file()
