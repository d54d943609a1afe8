"""About sixty kinds of video files, each made by ffmpeg at a tiny size: the table of `docs/files.md`.

`python -m tests.films` enlarges them all and writes the table into that page.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import torch

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)
from t2v_kit import DamagedVideo, upscale_file

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PAGE = Path(__file__).parents[1] / "docs" / "files.md"
TEST = "testsrc2=s=48x32:r=10:d=1"
LARGER = "testsrc2=s=96x64:r=10:d=0.5"  # below it ffmpeg 7's H.265 crashes
SOUND = "sine=f=440:d=1"
HDR = "-c:v libx265 -pix_fmt yuv420p10le -color_primaries bt2020 -colorspace bt2020nc -color_trc {0}"
HDR += " -x265-params log-level=none:colorprim=bt2020:transfer={0}:colormatrix=bt2020nc"
TAGS = "-color_primaries {0} -color_trc {0} -colorspace {0}"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: For the table.
        source, target: File names.
        steps: ffmpeg's arguments, a call each; {out} is the source, {a} begins the name of a file on the way.
        options: Of `upscale_file`.
        says: What the notes must match, one for each note.
        like: The PSNR in dB at least between what players show of the source, enlarged, and of the target; None where
            the two are meant to differ.
        cut: (from, to) of the source's bytes, as shares, that are deleted; "noise" overwrites them.
    """

    name: str
    source: str
    target: str
    steps: tuple[str, ...]
    options: dict = field(default_factory=dict)
    says: tuple[str, ...] = ()
    like: float | None = 30
    cut: tuple = ()


def lavfi(*arguments: str, video: str = TEST) -> tuple[str, ...]:
    return (f"-f lavfi -i {video} " + " ".join(arguments) + " {out}",)


PQ, HLG = (lavfi(HDR.format(transfer), video=LARGER) for transfer in ("smpte2084", "arib-std-b67"))
BURSTS = "-vf settb=1/1000,setpts='(floor(N/3)*0.3+mod(N\\,3)*0.002)/TB' -fps_mode passthrough -enc_time_base 1/1000"
UNEVEN = "-vf settb=1/100,setpts='(N+floor(N/4)*3)/10/TB' -fps_mode passthrough"
X264 = "-c:v libx264 -pix_fmt yuv420p -crf 8"
SRT = "1\n00:00:00,200 --> 00:00:00,800\nHello there\n"
CHAPTERS = (
    ";FFMETADATA1\ntitle=A film\nartist=Somebody\n"
    "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=Two\n"
)

KINDS = [
    Kind("H.264 in MP4", "a.mp4", "x.mp4", lavfi(X264)),
    Kind("23.976 fps", "a.mp4", "x.mp4", lavfi(X264, video="testsrc2=s=48x32:r=24000/1001:d=0.5")),
    Kind("119.88 fps", "a.mp4", "x.mkv", lavfi(X264, video="testsrc2=s=48x32:r=120000/1001:d=0.2")),
    Kind("variable rate", "a.mkv", "x.mp4", lavfi(
        "-vf select='lt(mod(n\\,60)\\,10)' -fps_mode passthrough -enc_time_base 1/1000", X264,
        video="testsrc2=s=48x32:r=60:d=1.5")),
    Kind("bursts", "a.mkv", "x.mkv", lavfi(BURSTS, X264)),
    Kind("bursts into H.265", "a.mkv", "x.mp4", lavfi(
        BURSTS, X264),
        {"codec": "hevc"}),
    Kind("begins at 2 s, MKV", "a.mkv", "x.mkv", lavfi("-vf settb=1/1000,setpts=PTS+2/TB -fps_mode passthrough", X264)),
    Kind("begins at 2 s, MP4", "a.mp4", "x.mp4", lavfi("-vf settb=1/1000,setpts=PTS+2/TB -fps_mode passthrough", X264)),
    Kind("edit list", "a.mp4", "x.mp4", ("-f lavfi -i testsrc2=s=48x32:r=10:d=2 -g 10 " + X264 + " {a}.mp4",
                                         "-ss 0.45 -i {a}.mp4 -c copy {out}")),
    Kind("GIF with uneven delays", "a.gif", "x.gif", lavfi(UNEVEN)),
    Kind("GIF", "a.gif", "x.mp4", lavfi(UNEVEN), like=25),
    Kind("APNG with opacity", "a.apng", "x.webm", lavfi(
        "-f apng", video="testsrc2=s=48x32:r=10:d=0.5,format=rgba,colorchannelmixer=aa=0.5"), like=None),
    Kind("pixels of 32:27, MP4", "a.mp4", "x.mp4", lavfi("-vf setsar=32/27", X264)),
    Kind("pixels of 32:27, WebM", "a.mkv", "x.webm", lavfi("-vf setsar=32/27", X264), {}, ("square pixels",), None),
    Kind("pixels of 32:27, MOV", "a.mp4", "x.mov", lavfi("-vf setsar=32/27", X264), {"codec": "prores"}),
    Kind("rotated by 90 degrees", "a.mp4", "x.mp4", (*(s.replace("{out}", "{a}.mp4") for s in lavfi(X264)),
                                                     "-display_rotation 90 -i {a}.mp4 -c copy {out}")),
    Kind("rotated, pixels of 4:3", "a.mov", "x.mkv", (
        *(s.replace("{out}", "{a}.mp4") for s in lavfi("-vf setsar=4/3", X264)),
        "-display_rotation 270 -i {a}.mp4 -c copy {out}")),
    Kind("mirrored", "a.mp4", "x.mp4", (*(s.replace("{out}", "{a}.mp4") for s in lavfi(X264)),
                                        "-display_hflip -i {a}.mp4 -c copy {out}")),
    Kind("H.264 in MPEG-TS", "a.ts", "x.mp4", lavfi(X264), like=None),
    Kind("MPEG-2 and sound in MPEG-PS", "a.mpg", "x.mp4", lavfi(
        f"-f lavfi -i {SOUND} -c:v mpeg2video -q:v 2 -c:a mp2 -shortest", video="testsrc2=s=48x32:r=25:d=1"),
         {}, ("mp2 does not go into mp4, and became aac",)),
    Kind("interlaced, top field first", "a.mp4", "x.mp4", lavfi(
        "-vf interlace,fieldorder=tff", X264, "-flags +ilme+ildct", video="testsrc2=s=48x32:r=50:d=0.5"),
        {}, ("interlaced: deinterlaced",), None),
    Kind("interlaced MPEG-2, bottom field first", "a.ts", "x.mkv", lavfi(
        "-vf interlace=scan=bff -c:v mpeg2video -q:v 2 -flags +ilme+ildct", video="testsrc2=s=48x32:r=50:d=0.5"),
        {}, ("interlaced: deinterlaced",), None),
    Kind("HDR (PQ)", "a.mkv", "x.mp4", PQ, {}, ("HDR was mapped to SDR",), None),
    Kind("HDR (PQ), kept", "a.mkv", "x.mp4", PQ, {"bit_depth": 10}),
    Kind("HDR (HLG)", "a.mp4", "x.mp4", HLG, {}, ("HDR was mapped to SDR",), None),
    Kind("HDR (HLG), kept in AV1", "a.mp4", "x.webm", HLG,
         {"bit_depth": 10, "codec": "av1"}),
    Kind("10 bits", "a.mkv", "x.mp4", lavfi(
        "-c:v libx265 -x265-params log-level=none -pix_fmt yuv420p10le", video=LARGER), {},
         ("10 bits became 8",)),
    Kind("10 bits, kept in ProRes", "a.mkv", "x.mov", lavfi("-c:v ffv1 -pix_fmt yuv422p10le"), {"codec": "prores"}),
    Kind("10 bits, kept in H.264", "a.mkv", "x.mp4", lavfi("-c:v ffv1 -pix_fmt yuv420p10le"),
         {"codec": "h264", "bit_depth": 10, "crf": 8}),
    Kind("4:4:4", "a.mp4", "x.mp4", lavfi("-c:v libx264 -pix_fmt yuv444p -crf 8"), like=25),
    Kind("full range (Motion JPEG, AVI)", "a.avi", "x.mp4", lavfi("-c:v mjpeg -q:v 2 -pix_fmt yuvj420p")),
    Kind("BT.709 at DVD size", "a.mp4", "x.mp4", lavfi(X264, TAGS.format("bt709"))),
    Kind("BT.601 (PAL)", "a.mp4", "x.mp4", lavfi(
        X264, "-color_primaries bt470bg -color_trc smpte170m -colorspace bt470bg")),
    Kind("BT.2020, not HDR", "a.mkv", "x.mkv", lavfi(
        X264, "-color_primaries bt2020 -color_trc bt2020-10 -colorspace bt2020nc")),
    Kind("untagged HD", "a.mp4", "x.mp4", lavfi(X264, video="testsrc2=s=32x600:r=10:d=0.3"), like=None),
    Kind("grey", "a.mkv", "x.mp4", lavfi("-c:v ffv1 -pix_fmt gray")),
    Kind("VP9 with opacity", "a.webm", "x.webm", lavfi(
        "-c:v libvpx-vp9 -crf 10 -b:v 0 -pix_fmt yuva420p -auto-alt-ref 0",
        video="testsrc2=s=48x32:r=10:d=0.5,format=yuva420p,colorchannelmixer=aa=0.5"), like=None),
    Kind("VP9 with opacity, H.264", "a.webm", "x.mp4", lavfi(
        "-c:v libvpx-vp9 -crf 10 -b:v 0 -pix_fmt yuva420p -auto-alt-ref 0",
        video="testsrc2=s=48x32:r=10:d=0.5,format=yuva420p,colorchannelmixer=aa=0.5"), {}, ("no opacity",), None),
    Kind("ProRes 4444 with opacity", "a.mov", "x.mov", lavfi(
        "-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le",
        video="testsrc2=s=48x32:r=10:d=0.5,format=rgba,colorchannelmixer=aa=0.5"), {"codec": "prores"}, (), None),
    Kind("RGB, lossless", "a.mkv", "x.mkv", lavfi("-c:v ffv1 -pix_fmt bgr0"), {"codec": "ffv1"}, like=200),
    Kind("two sound tracks", "a.mp4", "x.mp4", lavfi(
        f"-f lavfi -i {SOUND} -f lavfi -i {SOUND} -map 0 -map 1 -map 2 -c:a aac", X264,
        "-metadata:s:a:0 language=eng -metadata:s:a:1 language=deu")),
    Kind("AAC into WebM", "a.mp4", "x.webm", lavfi(f"-f lavfi -i {SOUND} -c:a aac", X264), {}, ("became opus",)),
    Kind("PCM into MP4", "a.mov", "x.mp4", lavfi(f"-f lavfi -i {SOUND} -c:a pcm_s16le", X264), {}, ("became aac",)),
    Kind("Opus into MP4", "a.mkv", "x.mp4", lavfi(f"-f lavfi -i {SOUND} -c:a libopus", X264)),
    Kind("sound, not wanted", "a.mp4", "x.mp4", lavfi(f"-f lavfi -i {SOUND} -c:a aac", X264), {"audio": "none"}),
    Kind("sound into GIF", "a.mp4", "x.gif", lavfi(f"-f lavfi -i {SOUND} -c:a aac", X264), {},
         ("left out: stream 1 .audio",), 22),
    Kind("SubRip subtitles", "a.mkv", "x.mkv", lavfi("-i {dir}/a.srt -map 0 -map 1 -c:s subrip", X264)),
    Kind("SubRip into MP4", "a.mkv", "x.mp4", lavfi("-i {dir}/a.srt -map 0 -map 1 -c:s subrip", X264), {},
         ("subtitles: subrip does not go into mp4, and became mov_text",)),
    Kind("chapters, tags, a font", "a.mkv", "x.mkv", lavfi(
        "-i {dir}/a.txt -map 0 -map_metadata 1 -map_chapters 1",
        "-attach {dir}/a.ttf -metadata:s:t mimetype=font/ttf", X264)),
    Kind("chapters and tags", "a.mp4", "x.mp4", lavfi("-i {dir}/a.txt -map 0 -map_metadata 1 -map_chapters 1", X264)),
    Kind("a cover", "a.mp4", "x.mp4", (
        "-f lavfi -i testsrc2=s=16x16 -frames:v 1 {a}.png", "-f lavfi -i " + TEST + " -i {a}.png -map 0 -map 1 " + X264
        + " -c:v:1 copy -disposition:v:1 attached_pic {out}")),
    Kind("odd size", "a.mkv", "x.mp4", lavfi(
        "-c:v ffv1 -pix_fmt yuv444p", video="testsrc=s=47x33:r=10:d=0.3"), like=25),
    Kind("one frame", "a.mp4", "x.mp4", lavfi("-frames:v 1", X264)),
    Kind("MPEG-4 with B frames in AVI", "a.avi", "x.mp4", lavfi("-c:v mpeg4 -q:v 2 -bf 2")),
    Kind("Windows Media", "a.wmv", "x.mp4", lavfi("-c:v wmv2 -q:v 2")),
    Kind("Flash", "a.flv", "x.mkv", lavfi("-c:v flv1 -q:v 2")),
    Kind("bare H.264", "a.h264", "x.mp4", lavfi(X264, "-bf 0", video="testsrc2=s=48x32:r=25:d=0.4")),
    Kind("odd name", "a ü 50%d:1.mp4", "x 電影'.mp4", lavfi(X264)),
    Kind("shown at 24 fps", "a.mp4", "x.mp4", lavfi(X264), {"fps": 24}, like=None),
    Kind("H.264 cut in half", "a.mp4", "x.mp4", lavfi(X264, "-g 3 -movflags +faststart"), cut=(0.75, 1)),
    Kind("MKV cut in half", "a.mkv", "x.mkv", lavfi(X264, "-g 3"), cut=(0.75, 1)),
    Kind("noise in the middle", "a.mp4", "x.mp4", lavfi(X264, "-g 3 -movflags +faststart"), like=None,
         cut=(0.5, 0.6, "noise")),
]  # fmt: skip


def nearest(folder: Path) -> Path:
    """A x4 network whose weights are all zero: it repeats each pixel, so that targets can be foretold."""
    from spandrel.architectures.Compact import Compact  # after t2v_kit, which makes torchvision importable

    net = Compact(num_feat=4, num_conv=1, upscale=4)
    for weight in net.parameters():
        weight.data.zero_()
    torch.save({"params": net.state_dict()}, folder / "nearest.pth")
    return folder / "nearest.pth"


def make(kind: Kind, folder: Path) -> Path:
    """Write the source."""
    (folder / "a.srt").write_text(SRT)
    (folder / "a.txt").write_text(CHAPTERS)
    (folder / "a.ttf").write_bytes(b"a font" * 10)
    names = {"a": str(folder / "first")} | {"out": str(folder / kind.source), "dir": str(folder)}
    for step in kind.steps:
        words = [word.strip("'") if "=" in word else word for word in step.split(" ") if word]
        words = [word.replace("'", "").format(**names) if "{" in word else word.replace("'", "") for word in words]
        subprocess.run([FFMPEG, "-v", "error", "-y", *words], check=True)
    path = folder / kind.source
    if kind.cut:
        data = bytearray(path.read_bytes())
        first, last = (round(share * len(data)) for share in kind.cut[:2])
        data[first:last] = np.random.default_rng(0).bytes(last - first) if len(kind.cut) > 2 else b""
        path.write_bytes(data)
    return path


@dataclass
class Seen:
    """What an independent look at a file gives."""

    times: list[Fraction]
    size: tuple[int, int]
    aspect: Fraction
    codec: str
    pixels: str
    tags: tuple[int, ...]
    others: list[str]
    chapters: int
    metadata: dict[str, str]
    last: float  # seconds that the last frame is shown; not above 0 where the file does not say
    start: Fraction  # of all streams together

    def __str__(self) -> str:
        shape = f"{self.size[0]}x{self.size[1]}" + (f" ({self.aspect})" if self.aspect != 1 else "")
        more = [f"{self.chapters} chapters"] * bool(self.chapters)
        return ", ".join([f"{self.codec} {self.pixels}", shape, f"{len(self.times)} frames", *self.others, *more])


def decoder(stream):
    """ffmpeg's own decoder of VP9 leaves opacity out; libvpx's does not."""
    opacity = {name.lower(): text for name, text in stream.metadata.items()}.get("alpha_mode") == "1"
    return av.CodecContext.create("libvpx-vp9", "r") if opacity else stream.codec_context


def look(path: Path) -> Seen:
    """Open a file with PyAV and decode it: times are those of the frames."""
    with av.open(f"file:{path}", metadata_errors="replace") as file:
        stream = file.streams.video[0]
        context = decoder(stream)
        times, first, end = [], None, Fraction(0)
        for packet in file.demux(stream):
            if packet.size and packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * stream.time_base)
            try:
                frames = context.decode(packet if packet.size else None)
            except av.error.FFmpegError:
                continue
            for frame in frames:
                first = first or frame
                times.append(len(times) / stream.average_rate if frame.pts is None else frame.pts * stream.time_base)
        others = []
        for other in file.streams:
            if other is not stream:
                name = other.codec_context.codec.canonical_name if other.codec_context else other.type
                others.append(f"{name} {other.language}" if other.language not in (None, "und") else name)
        if "mp4" in file.format.name and stream.duration:  # packets are as long as decoding lasts, not showing
            end = min(end, (stream.start_time + stream.duration) * stream.time_base)
        if tag := next((text for name, text in stream.metadata.items() if name.upper() == "DURATION"), None):
            end = sum(Fraction(part) * 60**power for power, part in enumerate(reversed(tag.split(":"))))
        tags = tuple(map(int, (first.colorspace, first.color_primaries, first.color_trc, first.color_range)))
        return Seen(
            times, (first.width, first.height), stream.sample_aspect_ratio or Fraction(1), stream.codec.canonical_name,
            first.format.name, tags, others, len(file.chapters()), dict(file.metadata), float(end - times[-1]),
            Fraction(file.start_time or 0, 1000000),
        )  # fmt: skip


def shown(path: Path) -> np.ndarray:
    """The frames as another build of ffmpeg shows them, upright, `(T, H, W, 3)` uint8."""
    command = [
        FFMPEG,
        "-v",
        "error",
        "-i",
        f"file:{path}",
        "-map",
        "0:v:0",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
    ]
    flags = ["-sws_flags", "accurate_rnd+full_chroma_int+full_chroma_inp+bicubic", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run([*command, *flags], capture_output=True).stdout
    probe = subprocess.run([FFMPEG, "-i", f"file:{path}"], capture_output=True, text=True, errors="replace").stderr
    width, height = map(int, re.search(r"Video: .*?, (\d+)x(\d+)", probe).groups())
    turned = re.search(r"rotation of (-?[\d.]+)", probe)
    if turned and round(float(turned[1])) % 180 == 90:
        width, height = height, width
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


@dataclass
class Result:
    """One row: the source, the target, and what was said."""

    kind: Kind
    before: Seen
    after: Seen
    notes: list[str]
    path: Path
    source: Path
    damage: DamagedVideo | None

    def row(self) -> str:
        said = "; ".join(note.split(": ", 1)[-1] if note.startswith(self.kind.source) else note for note in self.notes)
        if self.damage is not None:
            inner = re.search(r"is damaged \((.*?)\): (.*?) came", str(self.damage))
            said = f"damaged ({inner[1]}): {inner[2]} kept, exit 1" if inner else str(self.damage)
        ending = self.source.suffix[1:]
        return f"| {self.kind.name} | {ending}: {self.before} | {self.path.suffix[1:]}: {self.after} | {said} |"


def run(kind: Kind, folder: Path) -> Result:
    """Make the source of a kind, enlarge it fourfold, and look at both."""
    source, target, damage = make(kind, folder), folder / kind.target, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            path = upscale_file(source, target, nearest(folder), dtype="float32", progress=False, **kind.options)
        except DamagedVideo as found:
            damage, path = found, found.path
    notes = [str(each.message) for each in caught if each.category is UserWarning and each.filename == "t2v-kit"]
    return Result(kind, look(source), look(path), notes, path, source, damage)


def main() -> None:
    """Write the table into the page."""
    from t2v_kit.errors import fresh_notes

    rows = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder, fresh_notes():
            rows.append(run(kind, Path(folder)).row())
            print(rows[-1], file=sys.stderr)
    text = PAGE.read_text("utf-8")
    start, end = "<!-- table -->\n", "<!-- end of table -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    table = "| kind | in | out (x4) | said |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    PAGE.write_text(f"{before}{start}{table}{end}{after}", "utf-8")


if __name__ == "__main__":
    main()
