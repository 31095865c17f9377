"""What stands and moves around the shuttle in the rendered court: hall, floor and net once for a scene, players for each frame.

All of it is placed by a rally.Camera. Layers are (premultiplied colour float32 [h, w, 3], opacity float32 [h, w, 1], column, row): what
lies under a layer becomes `under * (1 - opacity) + colour`. Nothing here is a likeness of a person, a place or a brand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hpml.data.rally import LENGTH, NET, WIDTH, Camera, Rally

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Layer = tuple["np.ndarray", "np.ndarray", int, int]
FINE = 2  # drawn that much larger, then shrunk
SKIN = ((236, 188, 160), (205, 150, 115), (160, 108, 78), (110, 72, 52))
FIELDS = ((80, 160, 105), (95, 175, 115), (60, 125, 95), (70, 120, 165))  # the mat: greens, a blue
FLOORS = ((150, 70, 120), (95, 110, 120), (175, 145, 110), (70, 90, 130), (60, 105, 85), (120, 60, 60))
LINES = (-LENGTH / 2, 0.76 - LENGTH / 2, -1.98, 1.98, LENGTH / 2 - 0.76, LENGTH / 2)  # across
TAPE = 0.075  # metres


def hall(rng: np.random.Generator, camera: Camera, width: int) -> Image.Image:
    """Stands with people, boards, seats of judges, floor and lines under uneven light: a picture RGB of 16:9."""
    import numpy as np
    from PIL import Image, ImageChops, ImageDraw

    side = width
    size = width, width * 9 // 16
    dark = rng.uniform(8, 45) * rng.uniform(0.7, 1.3, 3)
    picture = Image.new("RGB", size, _colour(dark))
    draw = ImageDraw.Draw(picture)

    def at(x: float, y: float, z: float = 0.0) -> tuple[float, float]:
        column, row, _ = camera.see(np.array([x, y, z])) * side
        return float(column), float(row)

    def area(corners: list[tuple], colour: tuple) -> None:
        draw.polygon([at(*corner) for corner in corners], fill=colour)

    back = LENGTH / 2 + rng.uniform(2.5, 4.5)  # where the floor ends and the boards stand
    wall = rng.uniform(0.5, 1.3)
    light, rows = rng.uniform(0.35, 0.9), int(rng.integers(9, 17))
    for row in range(rows, -1, -1):  # people, the far rows first
        x = np.arange(-17, 17, 0.62)
        x = (x + rng.uniform(-0.3, 0.3, len(x)))[rng.random(len(x)) > 0.12]
        seats = np.stack([x, np.full_like(x, back + 3 + 0.9 * row), wall + 0.2 + 0.55 * row + rng.uniform(-0.1, 0.1, len(x))], 1)
        shirts = light * rng.uniform(20, 235, (len(x), 1)) * rng.uniform(0.4, 1.3, (len(x), 3))
        skins = light * np.array(SKIN)[rng.integers(len(SKIN), size=len(x))]
        colours = np.concatenate([shirts, skins], 1).clip(0, 255).astype(int).tolist()
        for (column, line, metre), colour in zip((camera.see(seats) * side).tolist(), colours, strict=True):
            if -metre < column < side + metre and line > -metre:
                draw.rectangle([column - 0.24 * metre, line, column + 0.24 * metre, line + 0.7 * metre], fill=tuple(colour[:3]))
                draw.ellipse([column - 0.12 * metre, line - 0.28 * metre, column + 0.12 * metre, line], fill=tuple(colour[3:]))
    side = FINE * width  # people are out of focus: drawn small and enlarged; the rest sharp: drawn large and shrunk
    picture = picture.resize((FINE * size[0], FINE * size[1]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    field = np.array(FIELDS[int(rng.integers(len(FIELDS)))]) * rng.uniform(0.8, 1.2) + rng.uniform(-12, 12, 3)
    floor = np.array(FLOORS[int(rng.integers(len(FLOORS)))]) * rng.uniform(0.7, 1.2) + rng.uniform(-12, 12, 3)
    board = _colour(rng.uniform(15, 120, 3))
    area([(-25, back + 2.5, 0), (25, back + 2.5, 0), (25, back + 2.5, wall), (-25, back + 2.5, wall)],
         _colour(np.array(board) * 0.5))
    area([(-25, back + 2.5), (25, back + 2.5), (25, -19), (-25, -19)], _colour(floor))
    for x in np.arange(-14, 14, rng.uniform(2.2, 3.4)):  # boards, and white marks on them as large as a shuttle and larger
        colour = board if rng.random() < 0.6 else _colour(rng.uniform(15, 200, 3))
        area([(x, back, 0), (x + 2.1, back, 0), (x + 2.1, back, 0.8), (x, back, 0.8)], colour)
        for mark in range(int(rng.integers(1, 7))):
            column, line = at(x + 0.25 + 0.28 * mark, back, rng.uniform(0.35, 0.45))
            reach = rng.uniform(0.04, 0.2) * float(camera.see(np.array([x, back, 0.4]))[2]) * side
            bright = (int(rng.integers(180, 250)),) * 3
            if rng.random() < 0.5:
                draw.ellipse([column - reach, line - reach, column + reach, line + reach], outline=bright, width=max(1, round(reach / 3)))
            else:
                draw.line([(column - reach / 2, line + reach), (column + reach / 2, line - reach)], fill=bright,
                          width=max(1, round(reach / 2)))
    around = 0.9 + 0.5 * rng.random()
    area([(-around - WIDTH / 2, LENGTH / 2 + around), (around + WIDTH / 2, LENGTH / 2 + around), (around + WIDTH / 2, -LENGTH / 2 - 4),
          (-around - WIDTH / 2, -LENGTH / 2 - 4)], _colour(field))
    white = (int(rng.integers(205, 245)),) * 3
    for x in (-WIDTH / 2, 0.46 - WIDTH / 2, 0.0, WIDTH / 2 - 0.46, WIDTH / 2):
        for y0, y1 in ((LINES[0], LINES[2]), (LINES[3], LINES[5])) if x == 0 else ((LINES[0], LINES[5]),):
            area([(x - 0.02, y0), (x + 0.02, y0), (x + 0.02, y1), (x - 0.02, y1)], white)
    for y in LINES:
        area([(-WIDTH / 2, y - 0.02), (WIDTH / 2, y - 0.02), (WIDTH / 2, y + 0.02), (-WIDTH / 2, y + 0.02)], white)
    for x, y in ((-WIDTH / 2 - 1.2, 0.3), (-4.6, LENGTH / 2 + 1.3), (4.6, LENGTH / 2 + 1.3), (-5.2, 3.0), (5.2, 3.0)):
        if rng.random() < 0.75:  # umpire and judges, on chairs
            up, coat = (1.5 if y == 0.3 else 0.45), _colour(rng.uniform(20, 110, 3))
            area([(x - 0.28, y, 0), (x + 0.28, y, 0), (x + 0.22, y, up), (x - 0.22, y, up)], _colour(rng.uniform(60, 200, 3)))
            area([(x - 0.2, y, up - 0.05), (x + 0.2, y, up - 0.05), (x + 0.22, y, up + 0.6), (x - 0.22, y, up + 0.6)], coat)
            (column, line), metre = at(x, y, up + 0.75), float(camera.see(np.array([x, y, up]))[2]) * side
            draw.ellipse([column - 0.11 * metre, line - 0.14 * metre, column + 0.11 * metre, line + 0.14 * metre],
                         fill=SKIN[int(rng.integers(len(SKIN)))])
    picture = picture.reduce(FINE)
    y, x = np.mgrid[0:18, 0:32] / 32  # lamps: a bright patch on the floor, darker corners
    patch = np.exp(-(((x - rng.uniform(0.3, 0.7)) / 0.35) ** 2 + ((y - rng.uniform(0.3, 0.5)) / 0.2) ** 2))
    shade = (0.82 + 0.18 * patch) * (1 - 0.2 * ((x - 0.5) ** 2 + (y - 9 / 32) ** 2) / 0.33)
    mask = Image.fromarray((255 * shade).clip(0, 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(picture, Image.merge("RGB", (mask,) * 3))


def net(rng: np.random.Generator, camera: Camera, width: int) -> Layer:
    """The net with its tape and posts: the mesh lets most of what is behind it through."""
    import numpy as np
    from PIL import Image, ImageDraw

    ends = [camera.see(np.array([x, 0.0, z])) * width for x in (-WIDTH / 2 - 0.1, WIDTH / 2 + 0.1) for z in (0, NET + 0.1)]
    left, top = int(min(end[0] for end in ends)) - 2, int(min(end[1] for end in ends)) - 2
    wide, high = int(max(end[0] for end in ends)) + 3 - left, int(max(end[1] for end in ends)) + 3 - top
    picture = Image.new("RGBA", (FINE * wide, FINE * high))
    draw = ImageDraw.Draw(picture)

    def area(x0: float, x1: float, z0: float, z1: float, colour: tuple) -> None:
        corners = camera.see(np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])) * width
        draw.polygon([(float(FINE * (column - left)), float(FINE * (row - top))) for column, row, _ in corners], fill=colour)

    half = WIDTH / 2
    area(-half, half, NET - 0.76, NET - TAPE, (int(rng.integers(15, 60)),) * 3 + (int(rng.integers(50, 95)),))
    area(-half, half, NET - TAPE, NET, (int(rng.integers(215, 245)),) * 3 + (255,))
    post = _colour(rng.uniform(30, 220, 3)) + (255,)
    for x in (-half, half):
        area(x - 0.04, x + 0.04, 0, NET, post)
    return _layer(picture, left, top)


def player(look: dict, rally: Rally, camera: Camera, side: int, number: float, width: int, exposure: float) -> Layer:
    """One player at a frame: two moments of the exposure, blended."""
    import numpy as np

    moments = [_pose(look, rally, side, number + part * exposure) for part in (-0.3, 0.3)]
    points = np.concatenate([np.array([p for part in parts for p in part[0]]) for parts, _ in moments])
    origin = camera.see(np.array([*moments[0][1], 0.0])) * width
    metre = float(origin[2])
    low, high = points.min(0) - 0.25, points.max(0) + 0.25
    left, top = math.floor(origin[0] + low[0] * metre), math.floor(origin[1] - high[1] * metre)
    size = max(1, math.ceil((high[0] - low[0] + 0.3) * metre)), max(1, math.ceil((high[1] - low[1]) * metre))
    drawn = [_drawn(parts, camera.see(np.array([*stand, 0.0])) * width, left, top, size) for parts, stand in moments]
    colour, opacity = ((drawn[0][i] + drawn[1][i]) / 2 for i in (0, 1))
    return colour, opacity, left, top


def look(rng: np.random.Generator) -> dict:
    """Colours and size of one player."""
    shirt = _colour(rng.uniform(15, 240, 3))
    return {"shirt": shirt, "shorts": shirt if rng.random() < 0.4 else _colour(rng.uniform(15, 200, 3)),
            "skin": SKIN[int(rng.integers(len(SKIN)))], "hair": _colour(rng.uniform(15, 70) * rng.uniform(0.7, 1.2, 3)),
            "shoe": _colour(rng.uniform(60, 245, 3)), "racket": _colour(rng.uniform(20, 220, 3)), "tall": rng.uniform(0.94, 1.06)}


def over(canvas: np.ndarray, layer: Layer) -> None:
    """Lays a layer on uint8 [h, w, 3], in place; what lies outside is cut."""
    import numpy as np

    colour, opacity, left, top = layer
    high, wide = canvas.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + colour.shape[1], wide), min(top + colour.shape[0], high)
    if x0 < x1 and y0 < y1:
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        under = canvas[y0:y1, x0:x1]
        under[:] = np.rint(under * (1 - opacity[part]) + colour[part])


def _pose(look: dict, rally: Rally, side: int, number: float) -> tuple[list[tuple], tuple[float, float]]:
    """([(points in metres (right, up), width or radius, colour)], where the player stands), from the feet to the racket."""
    x, y, since, contact = rally.player(side, number)
    x1, y1, _, _ = rally.player(side, number + 1)
    reach = math.exp(-((since / 5) ** 2))  # 1 at the hit
    right, up = float(contact[0]) - x, float(contact[2])
    low = reach * max(0.0, min(1.0, (1.3 - up) / 1.0))  # a lunge
    stride = math.sin(2.2 * math.hypot(x, y) * 2) * min(1.0, 20 * math.hypot(x1 - x, y1 - y))
    h = look["tall"]
    hip, lean = (0.12 * low * right, h * (0.9 - 0.28 * low)), 0.25 * low * right
    neck = hip[0] + lean, hip[1] + h * (0.52 - 0.1 * low)
    feet = [(way * (0.2 + 0.25 * low) + 0.22 * stride * way + 0.2 * low * right, 0.05 + 0.12 * max(0.0, stride * way)) for way in (-1, 1)]
    parts: list[tuple] = [([(0.0, 0.0)], -0.38, (0, 0, 0, 80))]  # shadow
    for way, foot in zip((-1, 1), feet, strict=True):
        start = hip[0] + 0.09 * way, hip[1]
        knee = (start[0] + foot[0]) / 2 + 0.07 * way, (start[1] + foot[1]) / 2 + 0.05
        parts += [([start, knee], 0.17, look["skin"]), ([knee, foot], 0.12, look["skin"]),
                  ([start, _mix(start, knee, 0.75)], 0.21, look["shorts"]),
                  ([foot, (foot[0] + 0.1 * way, foot[1] - 0.01)], 0.1, look["shoe"])]
    shoulder = neck[0] + 0.2, neck[1] - 0.06
    other = neck[0] - 0.2, neck[1] - 0.06
    elbow, hand = (other[0] - 0.2, other[1] - 0.2 + 0.3 * reach), (other[0] - 0.15, other[1] - 0.35 + 0.75 * reach)
    parts += [([other, elbow], 0.1, look["skin"]), ([elbow, hand], 0.08, look["skin"])]
    parts += [([hip, neck], 0.34, look["shirt"]), ([other, shoulder], 0.16, look["shirt"])]
    after = 0.5 * max(0.0, min(1.0, since / 6))  # the racket goes on, across the body
    tip = _mix((neck[0] + 0.45, neck[1] + 0.1), (right - after, up - after), reach)
    length = math.hypot(tip[0] - shoulder[0], tip[1] - shoulder[1]) or 1.0
    grip = (tip[0] - (tip[0] - shoulder[0]) / length * 0.6, tip[1] - (tip[1] - shoulder[1]) / length * 0.6)
    bend = (shoulder[0] + grip[0]) / 2 + 0.1, (shoulder[1] + grip[1]) / 2 - 0.08
    parts += [([shoulder, bend], 0.11, look["skin"]), ([bend, grip], 0.08, look["skin"]), ([grip, tip], 0.02, look["racket"]),
              ([tip], 0.115, look["racket"])]
    head = neck[0] + 0.2 * lean, neck[1] + 0.2 * h
    parts += [([head], 0.115, look["hair"] if side < 0 else look["skin"]), ([(head[0], head[1] + 0.05)], 0.1, look["hair"])]
    return parts, (x, y)


def _drawn(parts: list[tuple], origin: np.ndarray, left: int, top: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGBA", (FINE * size[0], FINE * size[1]))
    draw, metre = ImageDraw.Draw(picture), FINE * float(origin[2])
    x0, y0 = FINE * (float(origin[0]) - left), FINE * (float(origin[1]) - top)
    for points, wide, colour in parts:
        places = [(x0 + x * metre, y0 - z * metre) for x, z in points]
        (x, y), reach = places[0], abs(wide) * metre
        if wide < 0:  # flat on the floor
            draw.ellipse([x - reach, y - 0.25 * reach, x + reach, y + 0.25 * reach], fill=colour)
        elif wide == 0.115 and len(places) == 1 and colour is parts[-3][2]:  # the racket's head: a rim, strings seen through
            draw.ellipse([x - reach, y - 1.1 * reach, x + reach, y + 1.1 * reach], fill=(*colour, 70), outline=colour,
                         width=max(1, round(0.02 * metre)))
        elif len(places) == 1:
            draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)
        else:  # two tones: the lamps are above
            for share, tone, lift in ((1.0, 0.78, 0.0), (0.62, 1.0, -0.12)):
                thick = max(1, round(share * reach))
                shaded = tuple(int(one * tone) for one in colour)
                draw.line([(px, py + lift * reach) for px, py in places], fill=shaded, width=thick)
                for px, py in places:
                    high = py + lift * reach
                    draw.ellipse([px - thick / 2, high - thick / 2, px + thick / 2, high + thick / 2], fill=shaded)
    return _layer(picture, 0, 0)[:2]


def _layer(picture: Image.Image, left: int, top: int) -> Layer:
    import numpy as np

    pixels = np.asarray(picture.convert("RGBa").reduce(FINE), np.float32)
    return pixels[..., :3], pixels[..., 3:] / 255, left, top


def _mix(a: tuple, b: tuple, share: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _colour(values) -> tuple[int, int, int]:
    return tuple(int(min(max(value, 0), 255)) for value in values)
