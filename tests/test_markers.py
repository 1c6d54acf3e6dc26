"""markers.py: whole files of every form pass, cut ones never do, and each kind of damage has its line."""

import io
import pathlib
import random
import struct
import sys
import time

import numpy as np
from PIL import Image
import pytest

from vit_jax import markers, transforms

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'reliability'))

import pictures  # noqa: E402

PIECE = pictures.Pieces(random.Random(0))(48, 60)
PLAIN = {suffix: make(PIECE) for suffix, make in pictures.PLAIN.items()}
JPEG, PNG, GIF, BMP = PLAIN['jpg'], PLAIN['png'], PLAIN['gif'], PLAIN['bmp']
RESTARTS = pictures.encode(PIECE, 'JPEG', restart_marker_rows=1)


def fault(data, max_pixels=transforms.MAX_PIXELS):
  """'kind: reason' of a file, or None."""
  try:
    markers.check(data, max_pixels)
  except markers.Fault as found:
    return f'{found.kind}: {found}'


@pytest.mark.parametrize('number', range(len(pictures.HEALTHY)))
def test_whole_files_pass_and_have_pillows_format(number):
  suffix, make = pictures.HEALTHY[number]
  data = make(PIECE)
  found = markers.check(data, transforms.MAX_PIXELS)
  with Image.open(io.BytesIO(data)) as image:
    known = {'MPO': 'JPEG'}.get(image.format, image.format)
  assert found.get('format') == (known if suffix.lower() not in ('ppm', 'tga', 'ico', 'jp2') else None)
  assert ('scan_end' in found) == (known == 'JPEG' and b'\xff\xc0' in data)


@pytest.mark.parametrize('suffix', PLAIN)
def test_no_file_passes_that_is_cut_anywhere(suffix):
  data = PLAIN[suffix]
  lengths = {*range(12, min(700, len(data))), *range(700, len(data), 37), *range(len(data) - 20, len(data))}
  assert not [length for length in sorted(lengths) if not fault(data[:length])]
  assert fault(b'') == 'empty: an empty file'


def test_every_byte_of_a_png_counts():
  data = bytearray(PNG)
  for at in range(8, len(data), 7):
    data[at] ^= 1 << at % 8
    assert fault(bytes(data)), at
    data[at] ^= 1 << at % 8


def put(data, at, new):
  return data[:at] + new + data[at + len(new) :]


def entry(data, tag):
  """Where an entry of a little-endian TIFF's first page lies."""
  [start] = struct.unpack_from('<I', data, 4)
  places = range(start + 2, start + 2 + 12 * struct.unpack_from('<H', data, start)[0], 12)
  return next(at for at in places if struct.unpack_from('<H', data, at)[0] == tag)


def retagged(tag, count, value, *, data=PLAIN['tif']):
  return put(data, entry(data, tag) + 2, struct.pack('<HII', 4, count, value))


def scans(count):
  """A progressive JPEG whose last scan comes again and again."""
  data = pictures.encode(PIECE, 'JPEG', progressive=True)
  return data[:-2] + data[data.rindex(b'\xff\xda') : -2] * count + data[-2:]


FRAME, TABLE, SCAN = JPEG.index(b'\xff\xc0'), JPEG.index(b'\xff\xc4'), JPEG.index(b'\xff\xda')
FIRST = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)  # a GIF's first block
PIXELS = b''.join(b'\0' + row.tobytes() for row in np.asarray(PIECE))
CHUNKS = pictures.png(PIECE.size, 8, 2, PIXELS, pieces=3)
PARTS = [i - 4 for i in range(len(CHUNKS)) if CHUNKS[i : i + 4] == b'IDAT']

DAMAGED = {
  'corrupt: no segment begins at byte 2': put(JPEG, 2, b'\xff\x00'),
  f'corrupt: no segment begins at byte {FRAME}': put(JPEG, FRAME, b'\0'),
  f'corrupt: the segment at byte {TABLE} has no length': put(JPEG, TABLE + 2, b'\0\0'),
  f'corrupt: the segment at byte {TABLE} reaches behind the end of the file, although it has its end mark': put(
    JPEG, TABLE + 2, b'\xff\xff'
  ),
  'corrupt: two frame headers': JPEG[:TABLE] + JPEG[FRAME:],
  'corrupt: pixels before a frame header': JPEG[:FRAME] + JPEG[TABLE:],
  'corrupt: a frame header that makes no sense': put(JPEG, FRAME + 11, b'\0'),
  'corrupt: a scan of components that its frame does not have': put(JPEG, SCAN + 5, b'\x77'),
  'corrupt: 0x48 pixels': put(JPEG, FRAME + 5, struct.pack('>HH', 48, 0)),
  'corrupt: no pixels before the mark of its end': JPEG[:SCAN] + b'\xff\xd9',
  'corrupt: restart mark 1 at byte': RESTARTS.replace(b'\xff\xd0', b'', 1),
  'corrupt: 0 restart marks, and its size needs': RESTARTS.replace(b'\xff\xd0', b'').replace(b'\xff\xd1', b'')
  .replace(b'\xff\xd2', b'').replace(b'\xff\xd3', b''),
  'huge: 60000x60000 pixels, more than 178,956,970': put(JPEG, FRAME + 5, struct.pack('>HH', 60_000, 60_000)),
  'huge: 501 scans': scans(600),
  'corrupt: the IDAT chunk at byte 33 does not have its checksum': put(PNG, 60, bytes([PNG[60] ^ 1])),
  'corrupt: no chunk begins at byte 33': put(PNG, 37, b'ID T'),
  'corrupt: ends inside the IDAT chunk at byte 33, although it has its end mark': put(PNG, 33, b'\x7f'),
  'corrupt: its first chunk is not IHDR, or there are two': PNG[:33] + PNG[8:],
  'corrupt: colour type 7 of 8 bits': pictures.png((4, 4), 8, 7, bytes(100)),
  'corrupt: its IDAT chunks hold 52 of 64 bytes of pixels': pictures.png((5, 4), 8, 2, bytes(52)),
  'corrupt: its pixels do not inflate': CHUNKS[: PARTS[1]] + CHUNKS[PARTS[2] :],
  f'corrupt: no block begins at byte {FIRST}': put(GIF, FIRST, b'\x77'),
  'corrupt: no pixels before its trailer': GIF[:FIRST] + b';',
  'corrupt: the chunk at byte 12 reaches behind the end': put(PLAIN['webp'], 17, b'\xff'),
  'corrupt: no pixels in it': b'RIFF\x04\0\0\0WEBP',
  'corrupt: pixels that begin inside its header': put(BMP, 10, b'\x14'),
  'huge: 30000x30000 pixels': put(BMP, 18, struct.pack('<ii', 30_000, -30_000)),
  'corrupt: no pages in it': put(PLAIN['tif'], 4, bytes(4)),
  'corrupt: 1 pieces with 0 lengths': put(PLAIN['tif'], entry(PLAIN['tif'], 279), b'\xe9\xfd'),
  'truncated: pixels that lie up to byte': retagged(279, 1, 10**6),
  'corrupt: 1 of ': retagged(279, 1, 1),
  'corrupt: 16,777,216 pieces': retagged(273, 2**24, 8, data=PLAIN['tif'] + bytes(2**26)),
  'corrupt: tags that lie over each other': retagged(
    273, len(PLAIN['tif']) // 4 - 8, 8, data=retagged(279, len(PLAIN['tif']) // 4 - 8, 8)
  ),
  'huge: tiles of 70000x70000 pixels': put(
    PLAIN['tif'], entry(PLAIN['tif'], 278), struct.pack('<HHIIHHII', 322, 4, 1, 70_000, 323, 4, 1, 70_000)
  ),
}  # fmt: skip


@pytest.mark.parametrize('words', DAMAGED)
def test_damage_says_what_it_is(words):
  assert (fault(DAMAGED[words]) or '').startswith(words)


def test_pages_that_form_a_circle_and_tags_beyond_the_end():
  data = pictures.encode(PIECE, 'TIFF', **pictures.frames(PIECE, 2))
  [start] = struct.unpack_from('<I', data, 4)
  behind = start + 2 + 12 * struct.unpack_from('<H', data, start)[0]
  assert fault(data) is None
  assert fault(put(data, behind, struct.pack('<I', start))) == 'corrupt: its pages form a circle'
  assert fault(put(data, behind, struct.pack('<I', len(data)))).startswith('truncated: a page begins at byte')
  assert fault(put(data, entry(data, 258) + 8, b'\xff\xff\xff\x7f')).startswith('truncated: tag 258 lies at byte')


def test_a_small_limit_of_pixels_holds_for_every_format():
  assert [fault(data, 1000).split(',')[0] for data in PLAIN.values()] == [
    f'huge: {PIECE.width}x{PIECE.height} pixels'
  ] * len(PLAIN)


@pytest.mark.parametrize(
  'data',
  [
    JPEG[: SCAN + 14] + b'\xff' * 10**7,
    b'\xff\xd8' + b'\xff' * 10**7,
    GIF[:FIRST] + b'\x21\xfe' + b'\x01\x01' * 10**6,
    pictures.png((13_000, 13_000), 8, 2, bytes(10**8)),
    pictures.png((100, 100), 8, 2, bytes(10**8)),
  ],
  ids=['scan', 'filling', 'blocks', 'short', 'long'],
)
def test_what_is_made_to_take_long_does_not(data):
  start = time.process_time()
  fault(data)
  assert time.process_time() - start < 3


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded():
  with pytest.raises(markers.Fault, match='501 scans of'):
    markers.check_scans(scans(600), 48 * 60, transforms.MAX_PIXELS)
  with pytest.raises(markers.Fault, match='endless work'):  # fewer, but of a large picture
    markers.check_scans(scans(60), PIECE.width * PIECE.height, PIECE.width * PIECE.height * 3 // 2)
  markers.check_scans(scans(5), 48 * 60, transforms.MAX_PIXELS)
  markers.check_scans(JPEG + b'\xff\xda' * 1000, 48 * 60, transforms.MAX_PIXELS)  # behind its end they are no scans
