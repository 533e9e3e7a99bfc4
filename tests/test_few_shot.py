"""Few-shot classification: the network and its derivatives, episodes, and where images come from."""

import dataclasses
import json
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from maml_rl.envs import FewShotVectorEnv, Images, check_family, make_vec
from maml_rl.envs.few_shot import GlyphsVectorEnv
from PIL import Image
from test_inner import finite_differences
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml.inner import adapt
from maml_rl.policies import CategoricalHead, Conv4, act, flatten, initialise, unflatten
from maml_rl.rl2 import GRUPolicy
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.rollouts import Rollouts

SHAPE = (2, 7, 9)


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    """Seven characters with six images each, in torchvision's layout."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, alphabet, number in (("background", "A", 3), ("background", "B", 2), ("evaluation", "C", 2)):
        for character in range(number):
            folder = root / f"omniglot-py/images_{part}/{alphabet}/character{character + 1:02d}"
            folder.mkdir(parents=True)
            for drawn in range(6):
                pixels = rng.random((105, 105)) < 0.9
                Image.fromarray(pixels).save(folder / f"{drawn:04d}_01.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Classes of images that have a pattern each, with a little noise."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, number in (("train", 10), ("test", 4)):
        for name in range(number):
            (root / part / f"class{name}").mkdir(parents=True)
            pattern = 200 * rng.integers(0, 2, (4, 4, 3)).repeat(3, axis=0).repeat(4, axis=1)
            for i in range(4 + name % 4):
                pixels = (pattern + rng.integers(0, 50, pattern.shape)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / f"class{name}/{i}.png")
    return root


def test_only_readable_images_in_folders_of_classes_count(folders, tmp_path):
    root = shutil.copytree(folders, tmp_path / "images")
    shutil.copy(root / "train/class0/0.png", root / "train/thumbnail.png")
    (root / "train/class0/._0.png").write_bytes(b"of another system")
    (root / "train/more.png").mkdir()
    before = make_vec("maml_rl/ImageFolder-v0", 1, root=str(folders), num_ways=3, size=12)
    after = make_vec("maml_rl/ImageFolder-v0", 1, root=str(root), num_ways=3, size=12)
    assert before.images.sizes.tolist() == after.images.sizes.tolist()
    root = root.rename(tmp_path / "damaged")  # images that were read stay in memory
    (root / "train/class1/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class1/0.png cannot be read as an image"):
        make_vec("maml_rl/ImageFolder-v0", 1, root=str(root), num_ways=3, size=12)
    with pytest.raises(ValueError, match="colour is 'false', but must be True or False"):
        make_vec("maml_rl/ImageFolder-v0", 1, root=str(folders), num_ways=3, colour="false")


def test_images_are_read_as_people_see_them(folders, tmp_path, caplog):
    root = shutil.copytree(folders, tmp_path / "images")
    for name in ("a_transparent", "b_turned"):
        (root / "train" / name).mkdir()
    letter = np.zeros((12, 12, 4), np.uint8)  # a black square on nothing
    letter[4:8, 4:8, 3] = 255
    Image.fromarray(letter).save(root / "train/a_transparent/0.png")
    turned, ramp = Image.Exif(), np.linspace(0, 255, 12).astype(np.uint8)[:, None].repeat(12, axis=1)
    turned[0x0112] = 8  # by 90 degrees, against the clock
    Image.fromarray(ramp).save(root / "train/b_turned/0.png", exif=turned)
    (root / "train/b_turned/1.heic").write_bytes(b"of a telephone")
    kwargs = {"num_ways": 3, "size": 12, "colour": False}
    pixels = make_vec("maml_rl/ImageFolder-v0", 1, root=str(root), **kwargs).images.pixels
    assert "files such as 1.heic are not used (1 in all); images must be in folders of classes" in caplog.text
    assert np.unique(pixels[0]).tolist() == [0, 255]
    np.testing.assert_array_equal(pixels[0, 0] == 0, letter[:, :, 3] == 255)
    np.testing.assert_array_equal(pixels[1, 0], np.rot90(ramp))
    deep = root.rename(tmp_path / "deep")  # images that were read stay in memory
    Image.fromarray(ramp.astype(np.uint16) * 257).save(deep / "train/b_turned/0.png")
    with pytest.raises(ValueError, match="0.png has more than 8 bits for a pixel; save it with 8"):
        make_vec("maml_rl/ImageFolder-v0", 1, root=str(deep), **kwargs)


def conv4(num_filters=3, num_ways=4, seed=0):
    policy = Conv4(SHAPE, num_filters, CategoricalHead(num_filters, num_ways)).double()
    initialise(policy, torch.Generator().manual_seed(seed))
    theta = flatten(policy)
    return policy, theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).double()


def images(*shape):
    return torch.rand(*shape, int(np.prod(SHAPE)), generator=torch.Generator().manual_seed(2)).double()


def test_conv4_equals_torchs_convolutions_and_batch_norm():
    policy, theta = conv4()
    named = unflatten(policy, theta)
    x = images(5)
    expected = x.unflatten(-1, SHAPE)
    for i in range(4):
        weight = named[f"body.{i}.filters.weight"]  # of patches: row, column, channel
        weight = weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        expected = functional.conv2d(expected, weight, stride=2, padding=1)
        scale, shift = named[f"body.{i}.scale"], named[f"body.{i}.shift"]
        expected = functional.relu(functional.batch_norm(expected, None, None, scale, shift, training=True))
    logits = functional.linear(expected.mean((2, 3)), named["head.logits.weight"], named["head.logits.bias"])
    torch.testing.assert_close(act(policy, theta, x).logits, logits)


def test_the_statistics_are_those_of_one_task():
    policy, theta = conv4()
    x = images(3, 5)
    thetas = torch.stack([theta, 2 * theta, -theta])
    together = vmap(lambda theta, x: functional_call(policy, unflatten(policy, theta), (x,)))(thetas, x)
    for i in range(3):
        torch.testing.assert_close(together.logits[i], act(policy, thetas[i], x[i]).logits)
    assert not torch.allclose(act(policy, theta, x[0]).logits[:3], act(policy, theta, x[0, :3]).logits)


def test_an_inner_step_and_its_jacobian_agree_with_finite_differences():
    policy, theta = conv4(num_filters=1)
    x, labels = images(4, 1), torch.arange(4)[:, None]
    empty = torch.zeros(4, 1, dtype=torch.float64)
    support = Rollouts(
        x, labels, empty, empty.bool(), act(policy, theta, x[:, 0]), empty, empty, empty, empty, empty, (labels,)
    )
    config = Config(inner_lr=0.5)

    def loss(theta):
        return functional.cross_entropy(act(policy, theta, x[:, 0]).logits, labels[:, 0])

    adapted = adapt(policy, theta, support, config)[0]
    torch.testing.assert_close(adapted, theta - 0.5 * finite_differences(loss, theta), rtol=1e-5, atol=1e-7)
    jacobian = jacrev(lambda theta: adapt(policy, theta, support, config)[0])(theta)
    exact = finite_differences(lambda theta: adapt(policy, theta, support, config)[0], theta)
    torch.testing.assert_close(jacobian, exact, rtol=1e-4, atol=1e-6)
    assert (jacobian - torch.eye(len(theta))).abs().max() > 0.01


def numbered(num_classes=8, num_training=5, sizes=(6, 7, 8, 9)):
    """Every image says which class it is of, and which of its images."""
    counts = np.resize(sizes, num_classes)
    rows = [np.stack([np.full((1, 2, 2), 16 * c + i) for i in range(n)]) for c, n in enumerate(counts)]
    return Images(np.concatenate(rows).astype(np.uint8), counts, num_training)


def test_an_episode_has_different_images_of_the_classes_of_its_task():
    env = FewShotVectorEnv(numbered(), 3, 1)
    tasks = env.sample_tasks(200, np.random.default_rng(0))
    assert set(tasks.flat) == set(range(5))
    assert all(len(set(task)) == 3 for task in tasks)
    assert set(env.sample_test_tasks(50, np.random.default_rng(0)).flat) == {5, 6, 7}
    x, labels = env.examples(tasks, 2 * 3 * 3, np.random.default_rng(1))
    classes, numbers = x[:, :, 0, 0, 0] // 16, x[:, :, 0, 0, 0] % 16
    np.testing.assert_array_equal(classes, np.take_along_axis(tasks, labels, 1))
    for half in (labels[:, :9], labels[:, 9:]):
        assert (np.sort(half, axis=1) == [0, 0, 0, 1, 1, 1, 2, 2, 2]).all()
    for one_task in 16 * labels + numbers:
        assert len(set(one_task)) == 18
    assert {(c, i) for c, i in zip(classes.flat, numbers.flat, strict=True)} == {
        (c, i) for c in range(5) for i in range(numbered().sizes[c])
    }
    observed, _ = env.reset(seed=0)
    assert observed.dtype == np.uint8


def test_what_cannot_be_an_episode_is_refused():
    env = FewShotVectorEnv(numbered(), 3, 1)
    tasks, rng = env.sample_tasks(2, np.random.default_rng(0)), np.random.default_rng(1)
    with pytest.raises(ValueError, match="has 4 examples, but must have a multiple of num_ways = 3"):
        env.examples(tasks, 8, rng)
    with pytest.raises(ValueError, match="10 images of each class are needed, .* has only [67]"):
        env.examples(tasks, 30, rng)
    with pytest.raises(ValueError, match=r"the task \[1 2 1\] has a class twice; choose different classes"):
        env.reset(options={"task": np.array([[1, 2, 1]])})
    pixels, sizes, _ = numbered()
    for wrong in (
        {"pixels": pixels / 255},
        {"pixels": pixels[0]},
        {"sizes": sizes + 1},
        {"sizes": sizes / 1},
        {"num_training": 0},
        {"num_training": len(sizes)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} (has|is) .*, but must be"):
            FewShotVectorEnv(numbered()._replace(**wrong), 2, 1)
    for num_ways in (1, 4):
        with pytest.raises(ValueError, match=f"num_ways is {num_ways}, but must be between 2 and 3"):
            FewShotVectorEnv(numbered(), num_ways, 1)


def test_letters_that_look_the_same_are_one_class():
    found = GlyphsVectorEnv(1).images
    assert found.pixels.shape[1:] == (1, 28, 28)
    assert len(found.sizes) > 1000
    assert (found.sizes >= 10).all()
    assert found.num_training == len(found.sizes) - len(found.sizes) // 5
    drawings = found.pixels.reshape(len(found.sizes), -1, 28 * 28).transpose(1, 0, 2)
    kinds = [np.unique(face, axis=0, return_inverse=True)[1].ravel() for face in drawings]
    same = sum((kind[:, None] == kind).astype(int) for kind in kinds)
    np.fill_diagonal(same, 0)
    assert 0 < same.max() < len(drawings) / 2


def test_omniglot_is_read_in_torchvisions_layout(omniglot):
    gymnasium.register(
        "tests/Omniglot-v0",
        entry_point="maml_rl.envs.few_shot:OmniglotEnv",
        vector_entry_point="maml_rl.envs.few_shot:OmniglotVectorEnv",
        max_episode_steps=1,
        kwargs={"root": str(omniglot), "num_ways": 3},
    )
    check_family("tests/Omniglot-v0")
    found = make_vec("tests/Omniglot-v0", 1).images
    assert found.sizes.tolist() == [6] * 28  # seven characters in four orientations
    assert found.num_training == 20
    assert 0.05 < found.pixels.mean() / 255 < 0.2  # strokes are white
    by_class = found.pixels.reshape(7, 4, 6, 1, 28, 28)
    for turns in range(4):
        np.testing.assert_array_equal(by_class[:, turns], np.rot90(by_class[:, 0], turns, axes=(3, 4)))
    first = omniglot / "omniglot-py/images_background/A/character01/0000_01.png"
    with Image.open(first) as image:
        expected = 255 - np.array(image.convert("L").resize((28, 28)))
    assert any(np.array_equal(pixels[0], expected) for pixels in found.pixels)


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("maml_rl/Omniglot-v0", "Omniglot is not in /nowhere; download it with torchvision.datasets.Omniglot"),
        ("maml_rl/ImageFolder-v0", "/nowhere/train holds no folders of images; put a folder of images for each"),
    ],
)
def test_absent_images_are_one_sentence(command, env_id, sentence):
    result = command("train", "--env-id", env_id, "--env-kwargs", "root", "/nowhere")
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_tells_classes_of_a_folder_apart(command, folders, tmp_path):
    options = ("--env-kwargs", "root", folders, "num_ways", "3", "size", "12")
    options += ("--network", "conv4", "--hidden-sizes", "8", "--outer", "adam", "--outer-lr", "0.01")
    options += ("--inner-lr", "0.4", "--num-tasks", "4", "--num-rollouts", "3", "--eval-every", "0")
    options += ("--eval-num-tasks", "10", "--eval-num-rollouts", "6", "--eval-num-steps", "2")
    run = ("train", "--env-id", "maml_rl/ImageFolder-v0", "--run-dir", "run", "--iterations", "30", *options)
    result = command(*run)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert results == maml_rl.evaluate(tmp_path / "run")
    methods = results["methods"]
    assert methods["maml"]["success_mean"][1] > 0.7
    assert np.array(results["tasks"]).min() >= 10  # only test classes
    policy = maml_rl.load(tmp_path / "run")
    env = make_vec("maml_rl/ImageFolder-v0", 1, root=str(folders), num_ways=3, size=12)
    assert env.single_observation_space.shape == (3, 12, 12)
    x, labels = env.examples(np.array([[10, 11, 12]]), 12, np.random.default_rng(0))
    adapted = policy.adapt((x[0, :6], labels[0, :6]))
    assert (adapted(x[0, 6:], deterministic=True) == labels[0, 6:]).mean() > 0.6


def test_learners_that_see_one_example_at_a_time_need_no_whole_episodes():
    """RL² draws no sets of K examples, so K need not be a multiple of the number of classes."""
    rl2 = {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo"}
    config = Config(env_id="maml_rl/Glyphs-v0", num_rollouts=3, eval_num_rollouts=3, **rl2)
    with pytest.raises(UserError, match="must have a multiple of num_ways"):
        new_policy(dataclasses.replace(config, outer="adam", num_steps=1, rl2_episodes=0), for_training=True)
    own = GRUPolicy(28 * 28, 5, 4, CategoricalHead(4, 5))
    assert isinstance(new_policy(config, own, for_training=True), GRUPolicy)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--activation", "relu"), "activation is 'relu', but is only used with the MLP and the small CNN"),
        (("--num-rollouts", "4"), "a task has 4 examples, but must have a multiple of num_ways = 5"),
        (
            (
                *("--env-kwargs", "num_ways", "3", "--num-rollouts", "3"),
                *("--eval-every", "0", "--iterations", "100000"),
            ),
            "a task has 20 examples, but must have a multiple of num_ways = 3",
        ),
        (("--env-id", "maml_rl/Sinusoid-v0", "--env-kwargs"), "network is 'conv4', but the observation space"),
        (("--rl2-episodes", "2", "--num-steps", "0", "--outer", "ppo"), "network is 'conv4', but RL² does not"),
        (
            ("--env-id", "maml_rl/PixelNavigation2D-v0"),
            "normalises over all images of a call, but",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(command, options, sentence):
    run = ("train", "--env-id", "maml_rl/Glyphs-v0", "--network", "conv4", "--outer", "adam", "--iterations", "1")
    result = command(*run, *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
