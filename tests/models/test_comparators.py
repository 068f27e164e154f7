import numpy as np
import pytest
import torch

import medpclip.models
from medpclip.data.loading.geometry import Window
from medpclip.models.comparators import EMBEDDERS, Crop, MaskPooling, Prompted, PromptedCrop, Unprompted, mask_extents
from medpclip.models.load import load_model
from medpclip.models.prompts import Prompts

assert medpclip.models  # before open_clip, which it prepares for


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load_model("medpclip-tiny-16")


def pixels_of(model, images):
    return model.preprocess.to_pixels(torch.from_numpy(np.stack([model.preprocess.pad_resize(i) for i in images])))


def three_prompts(model, batch=1) -> Prompts:
    """A box, a click and a mask for each image, and a row of padding."""
    prompts = Prompts.empty(batch, 4, 1, model.mask_grid)
    prompts.boxes[:, 0] = torch.tensor([0.25, 0.5, 0.5, 0.75])
    prompts.box_valid[:, 0] = True
    prompts.points[:, 1, 0] = torch.tensor([0.3, 0.6])
    prompts.point_labels[:, 1, 0] = 1
    prompts.masks[:, 2, 16:24, 8:16] = 1
    prompts.mask_valid[:, 2] = True
    return prompts


@pytest.mark.parametrize("name", sorted(EMBEDDERS))
def test_unit_length_right_shape_finite_padding(model, name):
    images = [np.random.default_rng(i).integers(0, 255, (40 + 20 * i, 90, 3), np.uint8) for i in range(2)]
    with torch.no_grad():
        out = EMBEDDERS[name](model).embed(images, pixels_of(model, images), three_prompts(model, 2))
    assert out.shape == (2, 4, 192) and torch.isfinite(out).all()
    assert torch.allclose(out[:, :3].norm(dim=-1), torch.ones(2, 3), atol=1e-5)
    assert EMBEDDERS[name].name == name


def test_unprompted_is_the_image_embedding_and_prompted_the_models_own(model):
    images = [np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)]
    pixels, prompts = pixels_of(model, images), three_prompts(model)
    with torch.no_grad():
        assert torch.equal(Unprompted(model).embed(images, pixels, prompts)[0, 2], model.encode_image(pixels)[0])
        assert torch.equal(Prompted(model).embed(images, pixels, prompts), model.encode_regions(pixels, prompts)[1])


def test_crop_cuts_the_planted_square_from_the_full_resolution(model):
    image = np.zeros((300, 600, 3), np.uint8)  # padded to 600 x 600: 150 rows above and below
    image[100:160, 200:260] = (250, 10, 10)
    prompts = Prompts.empty(1, 2, 1, model.mask_grid)
    prompts.boxes[0, 0] = torch.from_numpy(Window.whole(600, 300).unit_box([200, 100, 60, 60]))
    prompts.box_valid[0, 0] = True
    crop = Crop(model, context=1.0)
    windows = crop.windows([image], prompts)
    assert windows == {(0, 0): (0, Window(200, 100, 60))}  # the padding row asks for none
    assert (crop._cut(image, windows[0, 0][1]) == (250, 10, 10)).all()
    wider = Crop(model, context=1.5).windows([image], prompts)[0, 0][1]
    assert wider == Window(185, 85, 90)


def test_crop_of_a_click_is_a_quarter_of_the_padded_side(model):
    image = np.zeros((300, 600, 3), np.uint8)
    prompts = Prompts.empty(1, 1, 2, model.mask_grid)
    prompts.points[0, 0] = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    prompts.point_labels[0, 0] = torch.tensor([1, 0])  # a click off the region doesn't move the crop
    assert Crop(model).windows([image], prompts)[0, 0][1] == Window(225, 75, 150)


def test_crop_of_a_mask_is_its_extent_and_batches_do_not_matter(model):
    images = [np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)]
    prompts = three_prompts(model)
    window = Crop(model, context=1.0).windows(images, prompts)[0, 2][1]
    assert window == Window(64, 128, 64)  # 32 cells for 256 pixels
    with torch.no_grad():
        many = Crop(model).embed(images, pixels_of(model, images), prompts)
        single = Crop(model, batch_size=1).embed(images, pixels_of(model, images), prompts)
        one = model.encode_image(pixels_of(model, [window.cut(images[0])]))
        exact = Crop(model, context=1.0).embed(images, pixels_of(model, images), prompts)
    assert torch.allclose(many, single, atol=1e-5)
    assert torch.allclose(exact[0, 2], one[0], atol=1e-5)
    assert not torch.allclose(exact[0, 2], exact[0, 1], atol=1e-3)


def test_prompted_crop_is_the_same_cut_under_a_box_prompt_around_all_of_it(model):
    images = [np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)]
    prompts = three_prompts(model)
    window = Crop(model).windows(images, prompts)[0, 0][1]
    assert PromptedCrop(model).windows(images, prompts)[0, 0][1] == window
    whole = Prompts.empty(1, 1, 1, model.mask_grid)
    whole.boxes[0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    whole.box_valid[0, 0] = True
    before = [p.detach().clone() for p in model.fusion.parameters()]
    try:
        with torch.no_grad():
            for p in model.fusion.parameters():  # at its start a prompt changes nothing
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            cut = Crop(model)._cut(images[0], window)
            expected = model.encode_regions(model.preprocess.to_pixels(torch.from_numpy(cut[None].copy())), whole)[1][
                0, 0
            ]
            found = PromptedCrop(model).embed(images, pixels_of(model, images), prompts)[0, 0]
            plain = Crop(model).embed(images, pixels_of(model, images), prompts)[0, 0]
    finally:
        with torch.no_grad():
            for p, old in zip(model.fusion.parameters(), before, strict=True):
                p.copy_(old)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_mask_extents():
    masks = torch.zeros(1, 3, 8, 4)
    masks[0, 0, 2:4, 1:2] = 0.1
    masks[0, 1, 7, 3] = 1
    assert mask_extents(masks)[0].tolist() == [[0.25, 0.25, 0.5, 0.5], [0.75, 0.875, 1, 1], [0, 0, 0, 0]]


def test_mask_pooling_equals_a_naive_loop(model):
    images = [np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)]
    pixels, prompts = pixels_of(model, images), three_prompts(model)
    prompts.boxes[0, 0] = torch.tensor([0.30, 0.40, 0.34, 0.43])  # smaller than a patch
    prompts.masks[0, 2] = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = MaskPooling(model).embed(images, pixels, prompts)[0]
        patches = model.encode_patches(pixels, normalize=False)[0]
    sums = torch.zeros(3, patches.shape[1])
    for n in range(64):
        row, column = divmod(n, 8)
        x1, y1, x2, y2 = (float(v) * 8 for v in prompts.boxes[0, 0])
        overlap = [max(0.0, min(x2, column + 1) - max(x1, column)), max(0.0, min(y2, row + 1) - max(y1, row))]
        px, py = (float(v) * 8 for v in prompts.points[0, 1, 0])
        weights = [
            overlap[0] * overlap[1],
            float(np.exp(-0.5 * ((px - column - 0.5) ** 2 + (py - row - 0.5) ** 2))),
            float(prompts.masks[0, 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()),
        ]
        for r, weight in enumerate(weights):
            sums[r] += weight * patches[n]
    assert torch.allclose(found[:3], torch.nn.functional.normalize(sums, dim=-1), atol=1e-5)
