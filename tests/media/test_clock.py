"""Sound and pictures on one clock, from any container and at any rate."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.media import load_media
from mtsk.media.video import resample_to_grid
from tests.media.clips import CLAP_S, FrameCollector, Kind, clap_picture, flash_and_click_s, sound_of, write_clip

FRAME_S = 0.04
KINDS = [
    Kind("mp4", "libx264", "aac"),
    Kind("mp4", "libx264", "aac", fps=30, rate_hz=44_100, layout="5.1"),
    Kind("mov", "mpeg4", "pcm_s16le", fps=50, rate_hz=8_000),
    Kind("mpg", "mpeg1video", "mp2", rate_hz=44_100),
    Kind("mkv", "libx264", "flac", fps=30),
    Kind("webm", "libvpx", "libopus"),
    Kind("webm", "libvpx-vp9", "vorbis", fps=50),
    Kind("ts", "libx264", "aac"),
    Kind("flv", "libx264", "aac", fps=30),
    Kind("avi", "mjpeg", "mp3", rate_hz=44_100),
]
SOUNDS = [
    Kind("wav", None, "pcm_s16le", rate_hz=8_000),
    Kind("wav", None, "pcm_f32le", rate_hz=96_000, layout="mono"),
    Kind("mp3", None, "libmp3lame", rate_hz=44_100),
    Kind("flac", None, "flac"),
    Kind("ogg", None, "libopus"),
    Kind("m4a", None, "aac", rate_hz=44_100, layout="mono"),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.suffix}-{kind.video}-{kind.audio}-{kind.fps}")
@pytest.mark.parametrize("late", ["none", "audio", "video"])
def test_clap_stays_in_sync(tmp_path, kind, late):
    if kind.suffix == "avi" and late == "audio":
        late = "video"  # AVI cannot say that the sound starts late
    audio_start_s, video_start_s = 0.8 * (late == "audio"), 0.8 * (late == "video")
    path = tmp_path / f"clip.{kind.suffix}"
    write_clip(path, kind, audio_start_s=audio_start_s, video_start_s=video_start_s)
    collector = FrameCollector()
    media = load_media(path, tracker=collector)
    flash_s, click_s = flash_and_click_s(collector.frames, media)
    # Containers without a mark for the encoder's lead-in begin with it, hence up to 0.04 s on both.
    assert abs(flash_s - click_s) <= FRAME_S / 2 + 0.002
    assert CLAP_S - 0.01 <= flash_s <= CLAP_S + FRAME_S + 1e-9
    assert sound_of(media).dtype == np.float32
    assert 0.4 < np.abs(sound_of(media)).max() < 0.6  # channels are averaged, not added
    assert media.has_video_stream
    assert not media.warnings
    assert media.duration_s == pytest.approx(2.0, abs=0.05)
    assert len(sound_of(media)) / 16_000 == pytest.approx(2.0, abs=0.05)
    assert len(collector.frames) in (50, 51)


@pytest.mark.parametrize("kind", SOUNDS, ids=lambda kind: f"{kind.suffix}-{kind.audio}-{kind.rate_hz}")
def test_sound_alone(tmp_path, kind):
    collector = FrameCollector()
    media = load_media(write_clip(tmp_path / f"clip.{kind.suffix}", kind), tracker=collector)
    assert not collector.frames
    assert media.mouth is None
    assert not media.has_video_stream
    assert int(np.argmax(np.abs(sound_of(media)) > 0.2)) / 16_000 == pytest.approx(CLAP_S, abs=0.002)
    assert len(sound_of(media)) == pytest.approx(2 * 16_000, abs=0.03 * 16_000)
    assert not media.warnings


def test_sound_is_resampled_completely(tmp_path):
    kind = Kind("wav", None, "pcm_s16le", rate_hz=44_100, layout="mono")
    media = load_media(write_clip(tmp_path / "clip.wav", kind, duration_s=1.7), tracker=None)
    assert len(sound_of(media)) == pytest.approx(1.7 * 16_000, abs=1)
    time_s = np.arange(len(sound_of(media))) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 500 * time_s)
    inside = (time_s > CLAP_S + 0.01) & (time_s < CLAP_S + 0.19)
    np.testing.assert_allclose(sound_of(media)[inside], tone[inside], atol=0.005)


def test_without_a_tracker_the_video_stays_undecoded_and_the_sound_is_the_same(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", KINDS[0], video_start_s=0.4)
    alone, both = load_media(path, tracker=None), load_media(path, tracker=FrameCollector())
    assert alone.mouth is None
    assert alone.has_video_stream
    assert not alone.warnings
    np.testing.assert_array_equal(sound_of(alone), sound_of(both))
    assert load_media(path, tracker=FrameCollector(), audio=False).waveform is None


def test_late_video_repeats_its_first_frame_and_late_sound_is_silence(tmp_path):
    collector = FrameCollector()
    kind = Kind("mp4", "libx264", "aac")
    load_media(write_clip(tmp_path / "video.mp4", kind, video_start_s=1.24), tracker=collector)
    assert all(frame.mean() > 250 for frame in collector.frames[:35])  # it starts within the flash, up to 1.4 s
    media = load_media(write_clip(tmp_path / "audio.mp4", kind, audio_start_s=1.0), tracker=None)
    assert not sound_of(media)[: int(0.97 * 16_000)].any()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_undone(tmp_path, degrees):
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = 255  # the upper left quarter
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90))  # turned back by what the file then says
    kind = Kind("mp4", "libx264", None)
    path = write_clip(tmp_path / "clip.mp4", kind, picture=lambda _: stored, rotation=degrees, duration_s=0.2)
    collector = FrameCollector()
    media = load_media(path, tracker=collector)
    assert media.waveform is None
    assert len(collector.frames) == 5
    assert collector.frames[0].shape == upright.shape
    assert np.abs(collector.frames[0].astype(int) - upright).mean() < 5


def test_one_frame_is_a_video(tmp_path):
    collector = FrameCollector()
    path = write_clip(tmp_path / "clip.mp4", Kind("mp4", "libx264", None), duration_s=0.04)
    assert load_media(path, tracker=collector).duration_s == 0.04
    assert len(collector.frames) == 1


@given(fps=st.floats(5, 120), num_frames=st.integers(2, 200), start_s=st.floats(0, 2))
def test_resampling_keeps_times_within_half_a_frame(fps, num_frames, start_s):
    times_s = [start_s + index / fps for index in range(num_frames)]
    chosen = list(resample_to_grid(((time_s, time_s) for time_s in times_s), frame_s=1 / fps))
    grid_s = np.arange(len(chosen)) / 25
    inside = (grid_s >= times_s[0]) & (grid_s <= times_s[-1])
    assert np.abs(np.array(chosen) - grid_s)[inside].max(initial=0) <= 0.5 / fps + 1e-5
    assert all(time_s == times_s[0] for time_s in np.array(chosen)[grid_s < times_s[0]])
    # Half a step to round, or a point that lies before the middle of the last two pictures.
    end_s = times_s[-1] + 1 / fps
    assert end_s - 0.5 / 25 - 1e-5 <= len(chosen) / 25 <= end_s + max(0.5 / 25, 1 / 25 - 1.5 / fps) + 1e-5


def test_25_frames_a_second_pass_unchanged():
    assert list(resample_to_grid(((index / 25, index) for index in range(1000)), frame_s=0.04)) == list(range(1000))


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([None, None, None], [0, 1, 2]),  # no time stamps
        ([0, 0.04, 0.04, 0.08], [0, 1, 3]),  # a repeated one
        ([0, 0.08, 0.04, 0.12], [0, 1, 1, 3]),  # out of order
        ([0, 0.04, 0.16], [0, 1, 1, 2, 2]),  # a hole
        ([50, 50.04, 0, 0.04], [1, 2, 3]),  # a clock that starts anew
    ],
)
def test_odd_time_stamps(times_s, expected):
    start = 0 if times_s[0] is None else times_s[0]
    chosen = list(resample_to_grid(((time_s, index) for index, time_s in enumerate(times_s)), frame_s=0.04))
    assert chosen[round(start * 25) :][-len(expected) :] == expected


def test_sound_with_a_hole_keeps_its_place(tmp_path):
    """A player that stops sending in silence leaves time stamps apart."""
    path = tmp_path / "hole.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0, 24_000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 9_000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    waveform = sound_of(load_media(path, tracker=None))
    assert len(waveform) == 32_000
    assert not waveform[8_100:23_900].any()
    assert (waveform[24_100:31_900] > 0.2).all()


def test_clap_picture_is_what_the_tests_assume():
    assert clap_picture(0).max() == 0
    assert clap_picture(CLAP_S).min() == 255
