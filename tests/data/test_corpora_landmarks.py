"""Supplied landmarks: what a file of them may hold, and that crops lie where our own tracker puts them."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtsk.checkpoints.sources import face_models, is_cached
from mtsk.data import prepare as prepare_module
from mtsk.data.corpora import Corpus, Source, lrs
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.prepare import Settings, prepare
from mtsk.media import FaceModels, MouthTracker, load_media
from mtsk.media.alignment import LIP_POINTS, STABLE_POINTS, apply, crop_placement
from mtsk.media.face import FaceDetector, FaceMesh, roi_of_face
from mtsk.media.landmarks import LandmarkTracker, read_landmarks, stable_points
from tests.data.conftest import write_clip
from tests.data.test_lrs import add, script

# The 468-point mesh at the places of the 68: jaw, brows, nose, eyes, outer and inner lips.
MESH_OF_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
FACE = np.random.default_rng(0).uniform(10, 40, (68, 2))


def pickled(path: Path, value: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


class FrameCollector(MouthTracker):
    """Keeps the pictures as they come to the tracker."""

    def track(self, frames: Any) -> Any:
        self.frames = list(frames)
        return super().track(self.frames)


# Files.


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_lists(tmp_path: Path, protocol: int) -> None:
    path = pickled(tmp_path / "a.pkl", [FACE, None, FACE.astype(np.float32) + 1], protocol)
    first, second, third = read_landmarks(path)
    assert first is not None
    assert third is not None
    np.testing.assert_array_equal(first, FACE)
    assert second is None
    np.testing.assert_allclose(third, FACE + 1, rtol=1e-5)


def test_names_of_older_numpy_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([FACE], protocol=2).replace(b"numpy._core.", b"numpy.core."))
    assert len(read_landmarks(path)) == 1


def test_arrays(tmp_path: Path) -> None:
    faces = np.stack([FACE, np.full_like(FACE, np.nan)])
    np.save(tmp_path / "a.npy", faces)
    np.savez(tmp_path / "a.npz", landmarks=faces)
    for name in ("a.npy", "a.npz"):
        first, second = read_landmarks(tmp_path / name)
        assert second is None
        np.testing.assert_array_equal(first, FACE)
    pickled(tmp_path / "a.pkl", [value for value in faces[:1]])
    assert len(read_landmarks(tmp_path / "a.pkl")) == 1


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_can_run_nothing(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.pkl", [_Evil(tmp_path / "ran")])
    with pytest.raises(ValueError, match=r"a\.pkl: no landmarks can be read from it \(it wants .*Path"):
        read_landmarks(path)
    assert not (tmp_path / "ran").exists()
    for name in ("os system", "builtins eval", "numpy load", "numpy.core.multiarray scalar", "builtins getattr"):
        path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n(Vx\ntR.")
        with pytest.raises(ValueError, match="it wants"):
            read_landmarks(path)


@pytest.mark.parametrize(
    "value", [[np.zeros((4, 2))], [np.zeros((68, 2))], [np.full((68, 2), np.inf)], ["text"], [[1, [2]]], {"a": 1}, 5]
)
def test_other_content_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_landmarks(pickled(tmp_path / "a.pkl", value))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ValueError, match="no landmarks can be read"):
        read_landmarks(tmp_path / "a.pkl")


# Crops.


def test_gaps_and_jumps() -> None:
    frames = [np.full((60, 60, 3), n, np.uint8) for n in range(7)]
    track = LandmarkTracker([FACE, None, FACE, FACE + 500, FACE + 500]).track(frames)
    assert (track.num_frames, track.num_detected, track.num_interpolated, track.num_missing) == (7, 4, 3, 0)
    assert track.crops_THW[2].any()
    assert not track.crops_THW[3].any()  # outside of the picture, and not smoothed towards the face before
    nobody = LandmarkTracker([None, None]).track(frames[:2])
    assert (nobody.num_faces, nobody.num_detected) == (0, 0)


def points_of(frames: list[NDArray[np.uint8]], models: FaceModels) -> list[NDArray[np.float64]]:
    """The mesh of the largest face on each frame, each found anew."""
    detector, mesh = FaceDetector(models.detection), FaceMesh(models.landmarks)
    return [mesh.locate(frame, roi_of_face(detector.detect(frame)[0]))[0] for frame in frames]


@pytest.mark.weights
def test_crops_lie_where_our_tracker_puts_them(grid_dir: Path, tmp_path: Path) -> None:
    if not is_cached("face"):
        pytest.skip("needs the face models in the cache (make weights)")
    clip = sorted((grid_dir / "s1").glob("*.mp4"))[0]
    collector = FrameCollector(face_models())
    own = load_media(clip, tracker=collector).mouth
    meshes = points_of(collector.frames, face_models())
    landmarks = [mesh[list(MESH_OF_68)] - 0.5 for mesh in meshes]  # which count from the centre of the first pixel
    corners = np.array([[0, 0], [96, 0], [0, 96], [96, 96], [48, 48]], dtype=float)
    for mesh, points in zip(meshes, landmarks, strict=True):
        ours = crop_placement(mesh[list(STABLE_POINTS)], mesh[list(LIP_POINTS)].mean(axis=0))
        rows = stable_points(points)
        theirs = crop_placement(rows[:-1], rows[-1])
        px = np.sqrt(abs(np.linalg.det(ours[:, :2])))  # of the picture, for one of the crop
        assert np.abs(apply(ours, corners) - apply(theirs, corners)).max() / px < 2
        assert np.linalg.det(theirs[:, :2]) / np.linalg.det(ours[:, :2]) == pytest.approx(1, abs=0.02)

    root = tmp_path / "src"
    add(root, "trainval/s1/00001", script("HELLO"), clip=clip)
    pickled(tmp_path / "landmarks/trainval/s1/00001.pkl", landmarks)
    corpus = lrs.list_sources("lrs3", root, landmarks=tmp_path / "landmarks")
    summary = prepare(corpus, tmp_path / "dst", Settings(face_models()), num_workers=0, progress=False)
    assert not summary.warnings
    example = UtteranceDataset(load_cuts(tmp_path / "dst", "train"))["lrs3_trainval_s1_00001", 0]
    assert own is not None
    assert example.mouth is not None
    assert example.mouth.shape == own.crops_THW.shape
    same = np.corrcoef(example.mouth.ravel().astype(float), own.crops_THW.ravel().astype(float))[0, 1]
    assert same > 0.97


def test_landmarks_are_taken_where_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without face models: where there are no landmarks, nobody is found."""
    monkeypatch.setattr(prepare_module, "_tracker", lambda settings: LandmarkTracker([None] * 10))
    root, landmarks = tmp_path / "src", tmp_path / "landmarks"
    for name in ("00001", "00002", "00003", "00004"):
        add(root, f"trainval/t00/{name}", script("HELLO"))
    pickled(landmarks / "trainval/t00/00001.pkl", [FACE] * 10)
    pickled(landmarks / "trainval/t00/00002.pkl", [_Evil(tmp_path / "ran")])
    pickled(landmarks / "trainval/t00/00004.pkl", [FACE] * 3)
    corpus = lrs.list_sources("lrs3", root, landmarks=landmarks)
    assert "1 files have no supplied landmarks; their faces are looked for" in corpus.notes
    settings = Settings(FaceModels(tmp_path, tmp_path))
    summary = prepare(corpus, tmp_path / "dst", settings, num_workers=0, progress=False)
    assert (summary.num_utterances, summary.num_without_lips) == ({"train": 4}, 2)
    assert "00002.pkl" in summary.warnings["lrs3_trainval_t00_00002"][-2]
    assert "has 3 frames, the video 10" in " ".join(summary.warnings["lrs3_trainval_t00_00004"])
    assert "lrs3_trainval_t00_00001" not in summary.warnings
    pickled(landmarks / "trainval/t00/00002.pkl", [FACE] * 10)
    again = lrs.list_sources("lrs3", root, landmarks=landmarks)
    assert prepare(again, tmp_path / "dst", settings, num_workers=0, progress=False).num_new == 1


def test_a_folder_without_any_is_a_mistake(tmp_path: Path) -> None:
    add(tmp_path / "src", "trainval/t00/1", script("HELLO"))
    with pytest.raises(ValueError, match="no such folder"):
        lrs.list_sources("lrs3", tmp_path / "src", landmarks=tmp_path / "absent")
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"none for any of 1 files, such as .*trainval.t00.1\.mp4; expected"):
        lrs.list_sources("lrs3", tmp_path / "src", landmarks=tmp_path / "other")


def test_sound_alone_needs_no_landmarks(tmp_path: Path) -> None:
    source = Source("a", write_clip(tmp_path / "a.mp4"), "text", landmarks=tmp_path / "absent.pkl")
    summary = prepare(Corpus((source,)), tmp_path / "dst", Settings(None), num_workers=0, progress=False)
    assert not summary.warnings
