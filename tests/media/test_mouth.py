"""Faces are found, followed, and cut out level and centred."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mtsk.media import MouthTracker, contact_sheet, load_media
from mtsk.media.alignment import LIP_POINTS, MEAN_FACE_K2, apply, crop_placement, rotate_scale, similarity_between, warp
from mtsk.media.face import FaceDetector, FaceMesh, _anchors, roi_of_face
from tests.media.clips import Kind, mouth_of, write_clip

Picture = NDArray[np.uint8]


def resized(frame: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def padded(frame: Picture, width: int, height: int, left: int, top: int) -> Picture:
    canvas = np.full((height, width, 3), 90, np.uint8)
    canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return canvas


def similarity_of_pictures(a: Picture, b: Picture) -> float:
    """Correlation of two stacks of crops."""
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


def test_whole_clip(talking_clip, tracker):
    media = load_media(talking_clip, tracker=tracker)
    mouth = mouth_of(media)
    assert mouth.crops_THW.shape == (mouth.num_frames, 96, 96)
    assert mouth.crops_THW.dtype == np.uint8
    assert mouth.num_frames == pytest.approx(media.duration_s * 25, abs=1)
    assert (mouth.num_detected, mouth.num_interpolated, mouth.num_missing) == (mouth.num_frames, 0, 0)
    assert mouth.num_faces == 1
    assert not media.warnings


def test_the_mouth_is_in_the_middle_at_one_scale(talking_frames, tracker, face_models):
    """Checked against landmarks that are found anew on each frame, without tracking or smoothing."""
    crops = tracker.track(talking_frames).crops_THW
    detector, mesh = FaceDetector(face_models.detection), FaceMesh(face_models.landmarks)
    for frame, crop in zip(talking_frames[::6], crops[::6], strict=True):
        points, _ = mesh.locate(frame, roi_of_face(detector.detect(frame)[0]))
        lips = points[list(LIP_POINTS)]
        width = float(np.linalg.norm(points[61] - points[291]))
        # The crop must be what lies around the lips, at a scale of 48 px per width of the mouth, give or take.
        best = max(
            similarity_of_pictures(crop, reference_crop(frame, lips.mean(axis=0), width / mouth_px))
            for mouth_px in (42, 45, 48, 51, 54)
        )
        assert best > 0.93
        shifted = reference_crop(frame, lips.mean(axis=0) + width / 4, width / 48)
        assert similarity_of_pictures(crop, shifted) < best - 0.05


def reference_crop(frame: Picture, centre: NDArray[np.float64], scale: float) -> Picture:
    """An upright square around a point: the talker holds the head level."""
    matrix = np.array([[scale, 0, centre[0] - 48 * scale], [0, scale, centre[1] - 48 * scale]])
    return warp(np.asarray(Image.fromarray(frame).convert("L")), matrix, 96)


@pytest.mark.parametrize("angle_deg", [-25, 15])
def test_a_tilted_head_is_set_upright(talking_frames, tracker, angle_deg):
    tilted = [
        np.asarray(Image.fromarray(frame).rotate(angle_deg, Image.Resampling.BICUBIC)) for frame in talking_frames
    ]
    straight, turned = tracker.track(talking_frames), tracker.track(tilted)
    assert turned.num_detected == len(tilted)
    assert similarity_of_pictures(straight.crops_THW, turned.crops_THW) > 0.95


@pytest.mark.parametrize("scale", [0.6, 2.5])
def test_the_size_of_the_face_does_not_matter(talking_frames, tracker, scale):
    height, width = (round(side * scale) for side in talking_frames[0].shape[:2])
    other = tracker.track([resized(frame, width, height) for frame in talking_frames])
    assert other.num_detected == len(talking_frames)
    assert similarity_of_pictures(tracker.track(talking_frames).crops_THW, other.crops_THW) > 0.97


def test_a_small_face_in_a_large_picture(talking_frames, tracker):
    other = tracker.track([padded(frame, 912, 720, 500, 400) for frame in talking_frames])
    assert other.num_detected == len(talking_frames)
    assert other.num_faces == 1
    assert similarity_of_pictures(tracker.track(talking_frames).crops_THW, other.crops_THW) > 0.98


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_by_metadata(tmp_path, talking_frames, tracker, degrees):
    stored = [np.ascontiguousarray(np.rot90(frame, -degrees // 90)) for frame in talking_frames]
    path = write_clip(
        tmp_path / "clip.mp4",
        Kind("mp4", "libx264", None),
        picture=lambda time_s: stored[round(time_s * 25)],
        duration_s=1.0,
        rotation=degrees,
    )
    mouth = mouth_of(load_media(path, tracker=tracker))
    assert mouth.num_detected == 25
    assert similarity_of_pictures(mouth.crops_THW, tracker.track(talking_frames).crops_THW) > 0.98


def test_no_face(tmp_path, tracker):
    black = np.zeros((288, 360, 3), np.uint8)
    path = write_clip(tmp_path / "black.mp4", Kind("mp4", "libx264", "aac"), picture=lambda _: black)
    media = load_media(path, tracker=tracker)
    assert mouth_of(media).num_faces == 0
    assert (mouth_of(media).num_detected, mouth_of(media).num_interpolated, mouth_of(media).num_missing) == (0, 0, 50)
    assert not mouth_of(media).crops_THW.any()
    assert media.warnings == ("no face was found in the video",)
    assert tracker.track([]).crops_THW.shape == (0, 96, 96)


def test_short_gaps_are_bridged(talking_frames, tracker):
    black = np.zeros_like(talking_frames[0])
    broken = [black if 8 <= index < 14 else frame for index, frame in enumerate(talking_frames)]
    mouth = tracker.track(broken)
    assert mouth.num_detected + mouth.num_interpolated == 25
    assert 6 <= mouth.num_interpolated <= 10  # the face is searched for every 5 frames
    assert mouth.num_missing == 0
    whole = tracker.track(talking_frames).crops_THW
    assert similarity_of_pictures(mouth.crops_THW[18:], whole[18:]) > 0.99
    assert not mouth.crops_THW[8:14].any()  # cut out of the black frames themselves


def test_long_gaps_are_reported(talking_frames, tracker):
    black = np.zeros_like(talking_frames[0])
    mouth = tracker.track([black.copy() for _ in range(30)] + talking_frames + [black.copy() for _ in range(40)])
    assert mouth.num_frames == 95
    assert 20 <= mouth.num_detected <= 25
    assert mouth.num_missing >= 70
    assert mouth.num_detected + mouth.num_interpolated + mouth.num_missing == 95
    assert mouth.crops_THW[40].any()


def test_several_faces_by_size(talking_frames, face_models):
    """A large face on the left, a smaller one on the right."""
    small = [resized(frame[:, ::-1], 252, 202) for frame in talking_frames]
    both = [padded(frame, 640, 320, 0, 10) for frame in talking_frames]
    for picture, face in zip(both, small, strict=True):
        picture[50:252, 370:622] = face
    largest, second, third = (MouthTracker(face_models, face=rank).track(both) for rank in range(3))
    assert largest.num_faces == second.num_faces == 2
    reference = MouthTracker(face_models)
    assert similarity_of_pictures(largest.crops_THW, reference.track(talking_frames).crops_THW) > 0.98
    assert similarity_of_pictures(second.crops_THW, reference.track(small).crops_THW) > 0.97
    assert third.num_detected == 0
    with pytest.raises(ValueError, match="-1 is not allowed"):
        MouthTracker(face_models, face=-1)


def test_the_crop_does_not_tremble(talking_frames, tracker):
    """A still picture in noise: from crop to crop the mouth moves by less than a third of a pixel."""
    generator = np.random.default_rng(0)
    noisy = [
        np.clip(talking_frames[0] + generator.normal(0, 6, talking_frames[0].shape), 0, 255).astype(np.uint8)
        for _ in range(20)
    ]
    crops = tracker.track(noisy).crops_THW.astype(float)
    mean = crops.mean(axis=0)
    gradient_y, gradient_x = np.gradient(mean)
    # Displacement of each crop against the mean, by least squares on the brightness.
    design = np.stack([gradient_x.ravel(), gradient_y.ravel()], axis=1)
    shifts = np.array([np.linalg.lstsq(design, (crop - mean).ravel(), rcond=None)[0] for crop in crops])
    assert np.abs(np.diff(shifts, axis=0)).max() < 0.33


def test_frames_come_one_at_a_time(talking_frames, tracker):
    """The tracker asks for a frame only when it has dealt with the one before: memory stays bounded."""
    alive: list[weakref.ref[Picture]] = []

    def frames() -> Iterator[Picture]:
        for frame in talking_frames * 4:
            copy = frame.copy()
            alive.append(weakref.ref(copy))
            yield copy
            del copy
            assert sum(reference() is not None for reference in alive) <= 4

    assert tracker.track(frames()).num_frames == 100


def test_anchors_are_those_of_the_short_range_model():
    anchors = _anchors()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[[0, 1, 2, 511, 512, 517, 518]].ravel()[:4], [1 / 32, 1 / 32, 1 / 32, 1 / 32])
    np.testing.assert_allclose(anchors[2], [3 / 32, 1 / 32])  # the line first
    np.testing.assert_allclose(anchors[[512, 517]], [[1 / 16, 1 / 16]] * 2)  # six per cell of the coarse grid
    np.testing.assert_allclose(anchors[-1], [15 / 16, 15 / 16])


def test_similarity_is_recovered():
    generator = np.random.default_rng(0)
    source = generator.normal(size=(12, 2))
    matrix = np.column_stack([rotate_scale(0.7, 2.5), [3.0, -4.0]])
    np.testing.assert_allclose(similarity_between(source, apply(matrix, source)), matrix, atol=1e-12)
    with pytest.raises(ValueError, match="coincide"):
        similarity_between(np.ones((3, 2)), source[:3])


def test_crop_placement_centres_the_mouth():
    face = apply(np.column_stack([rotate_scale(0.3, 1.7), [100.0, 200.0]]), MEAN_FACE_K2)
    placement = crop_placement(face, np.array([100.0, 200.0]))
    np.testing.assert_allclose(apply(placement, np.array([[48.0, 48.0]])), [[100, 200]])
    np.testing.assert_allclose(placement[:, :2], rotate_scale(0.3, 1.7), atol=1e-12)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_warp_samples_where_it_should(factor):
    """A ramp keeps its values at any scale and shift, and outside of the picture it is black."""
    ramp = np.tile(np.arange(0, 256, dtype=np.uint8), (256, 1))
    matrix = np.array([[factor, 0, 20.5], [0, factor, 10.0]])
    patch = warp(ramp, matrix, 40).astype(float)
    expected = factor * (np.arange(40) + 0.5) + 20.5 - 0.5
    np.testing.assert_allclose(patch[5], expected, atol=1.01)
    assert not warp(ramp, np.array([[1.0, 0, 500], [0, 1.0, 0]]), 40).any()


def test_contact_sheet(tmp_path, talking_frames, tracker):
    crops = tracker.track(talking_frames).crops_THW
    contact_sheet(crops, tmp_path / "sheet.png", num_columns=10)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 96, 10 * 96)
    np.testing.assert_array_equal(sheet[96:192, 192:288], crops[12])
    assert not sheet[192:, 5 * 96 :].any()
    with pytest.raises(ValueError, match="T >= 1"):
        contact_sheet(crops[:0], tmp_path / "none.png")
