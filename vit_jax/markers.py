"""The skeleton of an encoded picture: marks, lengths and checksums that a decoder does not look at.

A decoder that meets damage often goes on and gives another picture, or half of one, without a word. The container
tells more: JPEG (ITU T.81, annex B), PNG (ISO 15948), GIF89a, WebP (RFC 9649), BMP and TIFF 6.0 with BigTIFF. Nothing
is decoded here, except that a PNG's pixels are inflated and thrown away, for their checksum; bytes behind the end mark
(thumbnails, films of a telephone, padding) are allowed. What no mark shows is said in docs/data.md.
"""

import math
import re
import struct
import zlib

MAX_SCANS = 500  # of a JPEG: an encoder writes about ten
MAX_PASSES = 30  # scans of a JPEG of max_pixels: each is a pass over all pixels, however few its bytes
MAX_PAGES = 10_000  # of a TIFF: later ones are not looked at
MAX_PIECES = 2**22  # strips or tiles of a page: a row of pixels is the least that a strip holds

_MARK = re.compile(rb'\xff([^\x00\xff])', re.DOTALL)  # within a scan: FF 00 is a byte FF, and more FF are filling
_FILLING = re.compile(rb'\xff*')  # before a mark; a decoder in Python takes long for millions
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG: colour type -> samples of a pixel
_PASSES = ((8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0), (1, 2, 0, 1))
_TYPES = {1: 'B', 2: 'c', 3: 'H', 4: 'I', 5: 'II', 6: 'b', 7: 'c', 8: 'h', 9: 'i', 10: 'ii', 11: 'f', 12: 'd', 13: 'I'}
_TYPES |= {16: 'Q', 17: 'q', 18: 'Q'}  # TIFF: number -> one value in struct's letters
_WANTED = (256, 257, 258, 259, 273, 277, 279, 322, 323, 324, 325)  # TIFF: tags of a picture's size and place


class Fault(ValueError):
  """Why a file is no whole picture: kind is 'empty', 'truncated', 'corrupt' or 'huge', the message one line."""

  def __init__(self, kind, reason):
    super().__init__(reason)
    self.kind = kind


def check(data, max_pixels):
  """What the skeleton of a file says: {} for a format that is not known here, else {'format': Pillow's name, ...}.

  Of a JPEG whose one scan is baseline Huffman code, 'scan_end' is the offset of the mark behind its pixels.

  Args:
    data: bytes of a whole file.
    max_pixels: how many pixels a picture may have.

  Raises Fault where the file is empty, cut off, damaged, or has more pixels or scans than a picture may have.
  """
  if not data:
    raise Fault('empty', 'an empty file')
  for start, read in _READERS.items():
    if data.startswith(start):
      try:
        return read(data, max_pixels)
      except (struct.error, IndexError):  # a header that is not there to its end
        raise Fault('truncated', 'ends inside a header') from None
  if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
    return _webp(data, max_pixels)
  return {}


def check_scans(data, pixels, max_pixels):
  """Raises Fault where a JPEG of so many pixels is endless work to decode; costs one search through its bytes."""
  marks = data.count(b'\xff\xda')  # as many scans at most: thumbnails and what follows its end may have some
  if marks > MAX_SCANS or marks * pixels > MAX_PASSES * max_pixels:
    try:
      check(data, max_pixels)
    except Fault as fault:
      if fault.kind == 'huge':
        raise


def _sized(width, height, max_pixels):
  if not width or not height:
    raise Fault('corrupt', f'{width}x{height} pixels')
  if width * height > max_pixels:
    raise Fault('huge', f'{width}x{height} pixels, more than {max_pixels:,}')


def _cut(ended, reason):
  """The fault of a file whose parts reach behind its end: damaged where its end mark is there, else cut off."""
  return Fault('corrupt', f'{reason}, although it has its end mark') if ended else Fault('truncated', reason)


def _jpeg(data, max_pixels):
  ended, at, scans, frame, interval, scan_end = data[-2:] == b'\xff\xd9', 2, 0, None, 0, 0
  while True:
    start, at = at, _FILLING.match(data, at).end()
    if at >= len(data):
      raise _cut(ended, 'ends without the mark of its end')
    mark, at = data[at], at + 1
    if not 2 <= at - start <= 2000 or mark <= 0x01 or 0xD0 <= mark <= 0xD8:
      raise Fault('corrupt', f'no segment begins at byte {start}')
    if mark == 0xD9:
      break
    [length] = struct.unpack_from('>H', data, at)
    if length < 2:
      raise Fault('corrupt', f'the segment at byte {start} has no length')
    if at + length > len(data):
      raise _cut(ended, f'the segment at byte {start} reaches behind the end of the file')
    segment, at = data[at + 2 : at + length], at + length
    if mark in _FRAMES:
      if frame:
        raise Fault('corrupt', 'two frame headers')
      frame = _frame(mark, segment, max_pixels)
    elif mark == 0xDD:
      [interval] = struct.unpack_from('>H', segment)
    elif mark == 0xDA:
      scans += 1
      if frame is None:
        raise Fault('corrupt', 'pixels before a frame header')
      if scans > MAX_SCANS or scans * frame[1] * frame[2] > MAX_PASSES * max_pixels:
        raise Fault('huge', f'{scans} scans of {frame[1]}x{frame[2]} pixels or more: endless work to decode')
      at = scan_end = _scan(data, at, ended, _restarts(frame, segment, interval))
  if not scans:
    raise Fault('corrupt', 'no pixels before the mark of its end')
  return {'format': 'JPEG'} | ({'scan_end': scan_end} if scans == 1 and frame[0] in (0xC0, 0xC1) else {})


def _frame(mark, segment, max_pixels):
  """(mark, width, height, {component: (horizontal, vertical sampling)}) of a frame header."""
  _, height, width, count = struct.unpack_from('>BHHB', segment)
  if height:  # else a DNL segment would say it behind the first scan, and Pillow refuses the file
    _sized(width, height, max_pixels)
  sampling = {segment[i]: (segment[i + 1] >> 4, segment[i + 1] & 15) for i in range(6, 6 + 3 * count, 3)}
  if not sampling or not all(1 <= one <= 4 for pair in sampling.values() for one in pair):
    raise Fault('corrupt', 'a frame header that makes no sense')
  return mark, width, height, sampling


def _restarts(frame, segment, interval):
  """How many restart marks a scan has, None where that cannot be told."""
  _, width, height, sampling = frame
  names = [segment[1 + 2 * i] for i in range(segment[0])]
  if not names or not all(name in sampling for name in names):
    raise Fault('corrupt', 'a scan of components that its frame does not have')
  if not interval or not height:
    return None if interval else 0
  most = [max(pair[i] for pair in sampling.values()) for i in (0, 1)]
  own = most if len(names) > 1 else [1, 1]  # a scan of one component counts its own blocks
  share = [1, 1] if len(names) > 1 else [sampling[names[0]][i] / most[i] for i in (0, 1)]
  across, down = (math.ceil(math.ceil(n * s) / (8 * o)) for n, s, o in zip((width, height), share, own))
  return -(-across * down // interval) - 1


def _scan(data, at, ended, wanted):
  """The offset of the mark behind a scan's coded pixels; restart marks on the way must count 0 to 7 in turn."""
  for found, match in enumerate(_MARK.finditer(data, at)):
    number = match[1][0] - 0xD0
    if not 0 <= number <= 7:
      if wanted is not None and not wanted <= found <= wanted + 1:  # some encoders end with one more
        raise Fault('corrupt', f'{found} restart marks, and its size needs {wanted}')
      return match.start()
    if number != found % 8:
      raise Fault('corrupt', f'restart mark {number} at byte {match.start()}, where {found % 8} was due')
  raise _cut(ended, 'ends inside its pixels, without the mark of its end')


def _png(data, max_pixels):
  view, at, header, pixels = memoryview(data), 8, None, None
  ended = data[-8:] == b'IEND\xaeB`\x82'
  while True:
    if at + 12 > len(data):
      raise _cut(ended, 'ends without an IEND chunk')
    length, kind = struct.unpack_from('>I4s', data, at)
    if not kind.isalpha():
      raise Fault('corrupt', f'no chunk begins at byte {at}')
    if at + 12 + length > len(data):
      raise _cut(ended, f'ends inside the {kind.decode()} chunk at byte {at}')
    if struct.unpack_from('>I', data, at + 8 + length)[0] != zlib.crc32(view[at + 4 : at + 8 + length]):
      raise Fault('corrupt', f'the {kind.decode()} chunk at byte {at} does not have its checksum')
    if (header is None) != (kind == b'IHDR'):
      raise Fault('corrupt', 'its first chunk is not IHDR, or there are two')
    if kind == b'IHDR':
      header = struct.unpack_from('>IIBBBBB', data, at + 8)
      _sized(*header[:2], max_pixels)
      pixels = _Inflated(_png_bytes(*header))
    elif kind == b'IDAT':
      pixels.feed(view[at + 8 : at + 8 + length])
    elif kind == b'IEND':
      break
    at += 12 + length
  if pixels.seen < pixels.wanted:
    raise Fault('corrupt', f'its IDAT chunks hold {pixels.seen:,} of {pixels.wanted:,} bytes of pixels')
  return {'format': 'PNG'}


def _png_bytes(width, height, depth, colour, _, __, interlaced):
  """How many bytes the pixels of a PNG are, with a byte for the filter of each row."""
  if colour not in _SAMPLES or depth not in (1, 2, 4, 8, 16):
    raise Fault('corrupt', f'colour type {colour} of {depth} bits')
  line = lambda w: 1 + (w * _SAMPLES[colour] * depth + 7) // 8
  if not interlaced:
    return height * line(width)
  sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for dx, dy, x, y in _PASSES]
  return sum(h * line(w) for w, h in sizes if w > 0 and h > 0)


class _Inflated:
  """Counts the bytes that a zlib stream gives, a megabyte at a time, until there are more than wanted."""

  def __init__(self, wanted):
    self.wanted, self.seen, self._stream = wanted, 0, zlib.decompressobj()

  def feed(self, data):
    try:
      while len(data) and not self._stream.eof and self.seen <= self.wanted:
        self.seen += len(self._stream.decompress(data, 2**20))
        data = self._stream.unconsumed_tail
    except zlib.error as error:
      raise Fault('corrupt', f'its pixels do not inflate: {error}') from None


def _gif(data, max_pixels):
  width, height, flags = struct.unpack_from('<HHB', data, 6)
  _sized(width, height, max_pixels)
  ended, frames, at = data[-1:] == b';', 0, 13 + _table(flags)
  while at < len(data) and data[at] != 0x3B:
    if data[at] == 0x21:
      at = _blocks(data, at + 2, ended)
    elif data[at] == 0x2C:
      at, frames = _blocks(data, at + 11 + _table(data[at + 9]), ended), frames + 1
    else:
      raise Fault('corrupt', f'no block begins at byte {at}')
  if at >= len(data):
    raise _cut(ended, 'ends without its trailer')
  if not frames:
    raise Fault('corrupt', 'no pixels before its trailer')
  return {'format': 'GIF'}


def _table(flags):
  """Bytes of the colour table that a GIF's flags announce."""
  return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks(data, at, ended):
  """The offset behind a GIF's row of sub-blocks that begins at `at`."""
  while at < len(data) and data[at]:
    at += data[at] + 1
  if at >= len(data):
    raise _cut(ended, 'ends inside its blocks')
  return at + 1


def _webp(data, max_pixels):
  end = 8 + struct.unpack_from('<I', data, 4)[0]
  if end > len(data) + 1:  # a last byte of filling may be missing
    raise Fault('truncated', f'ends at byte {len(data):,} of {end:,}')
  at, frames = 12, 0
  while at + 8 <= end:
    kind, length = struct.unpack_from('<4sI', data, at)
    if at + 8 + length > min(end, len(data)):
      raise Fault('corrupt' if at + 8 + length > end else 'truncated', f'the chunk at byte {at} reaches behind the end')
    body = data[at + 8 : at + 8 + min(length, 40)]
    if kind == b'VP8X' and length >= 10:
      _sized(*(1 + int.from_bytes(body[i : i + 3], 'little') for i in (4, 7)), max_pixels)
    elif kind == b'VP8L' and length >= 5:
      bits = int.from_bytes(body[1:5], 'little')
      _sized(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), max_pixels)
    elif kind == b'VP8 ' and length >= 10:
      if body[3:6] != b'\x9d\x01\x2a' or 10 + (int.from_bytes(body[:3], 'little') >> 5) > length:
        raise Fault('corrupt', 'a frame header that makes no sense')
      _sized(*(side & 0x3FFF for side in struct.unpack_from('<HH', body, 6)), max_pixels)
    frames += kind in (b'VP8 ', b'VP8L', b'ANMF')
    at += 8 + length + length % 2
  if not frames:
    raise Fault('corrupt', 'no pixels in it')
  return {'format': 'WEBP'}


def _bmp(data, max_pixels):
  size, start, head = struct.unpack_from('<I4xII', data, 2)
  form, most = ('<HHHH', 12) if head == 12 else ('<iiHHI', 20)
  width, height, _, bits, *packed = struct.unpack_from(form, data, 18)
  _sized(abs(width), abs(height), max_pixels)
  needed = start + (abs(width) * bits + 31) // 32 * 4 * abs(height) if not packed or packed[0] in (0, 3, 6) else size
  if needed > len(data):
    raise Fault('truncated', f'ends at byte {len(data):,} of {needed:,}')
  if head < most or start < 14 + head:
    raise Fault('corrupt', 'pixels that begin inside its header')
  return {'format': 'BMP'}


def _tiff(data, max_pixels):
  order = '<' if data[:2] == b'II' else '>'
  big = struct.unpack_from(f'{order}H', data, 2)[0] == 43
  [offset], seen = struct.unpack_from(f'{order}Q' if big else f'{order}I', data, 8 if big else 4), set()
  left = [len(data)]
  while offset and len(seen) < MAX_PAGES:
    if offset in seen:
      raise Fault('corrupt', 'its pages form a circle')
    if offset + 2 > len(data):
      raise Fault('truncated', f'a page begins at byte {offset:,} of {len(data):,}')
    seen.add(offset)
    tags, offset = _directory(data, offset, order, big, left)
    _page(tags, len(data), max_pixels)
  if not seen:
    raise Fault('corrupt', 'no pages in it')
  return {'format': 'TIFF'}


def _directory(data, at, order, big, left):
  """({tag: values of _WANTED}, the next page's offset or 0). left: [bytes] from which all that is read is taken, as
  tags that lie over each other would make a small file endless work."""
  count, entry, inline = (f'{order}Q', f'{order}HHQ8s', 8) if big else (f'{order}H', f'{order}HHI4s', 4)
  [entries], tags = struct.unpack_from(count, data, at), {}
  at += struct.calcsize(count)
  step = struct.calcsize(entry)
  if at + entries * step + inline > len(data):
    raise Fault('truncated', f'ends inside the page at byte {at:,}')
  for place in range(at, at + entries * step, step):
    tag, kind, number, _ = struct.unpack_from(entry, data, place)
    letters = _TYPES.get(kind, '')
    length, here = number * struct.calcsize(f'<{letters}'), place + step - inline
    if length > inline:
      [here] = struct.unpack_from(f'{order}Q' if big else f'{order}I', data, here)
    if here + length > len(data):
      raise Fault('truncated', f'tag {tag} lies at byte {here:,} to {here + length:,} of {len(data):,}')
    left[0] -= step + (length if length > inline else 0)
    if left[0] < 0 or tag in _WANTED and number > MAX_PIECES:
      raise Fault('corrupt', 'tags that lie over each other' if left[0] < 0 else f'{number:,} pieces')
    if tag in _WANTED and tag not in tags and letters in ('B', 'H', 'I', 'Q'):
      tags[tag] = struct.unpack_from(f'{order}{number}{letters}', data, here)
  return tags, struct.unpack_from(f'{order}Q' if big else f'{order}I', data, at + entries * step)[0]


def _page(tags, size, max_pixels):
  """Raises Fault where the pixels of a TIFF's page are not all in the file of `size` bytes."""
  one = lambda tag, default=0: (tags.get(tag) or (default,))[0]
  width, height = one(256), one(257)
  _sized(width, height, max_pixels)
  if one(322) * one(323) > max_pixels:
    raise Fault('huge', f'tiles of {one(322)}x{one(323)} pixels')
  places, lengths = tags.get(324, tags.get(273, ())), tags.get(325, tags.get(279, ()))
  if one(259, 1) == 6 and not places:  # JPEG as TIFF 6.0 first had it
    return
  if not places or len(places) != len(lengths):
    raise Fault('corrupt', f'{len(places)} pieces with {len(lengths)} lengths')
  end = max(place + length for place, length in zip(places, lengths))
  if end > size:
    raise Fault('truncated', f'pixels that lie up to byte {end:,} of {size:,}')
  samples, bits = one(277, 1), tags.get(258, (1,))
  wanted = height * ((width * (sum(bits) if len(bits) == samples else samples * bits[0]) + 7) // 8)
  if one(259, 1) == 1 and sum(lengths) < wanted:
    raise Fault('corrupt', f'{sum(lengths):,} of {wanted:,} bytes of pixels')


_READERS = {
  b'\xff\xd8\xff': _jpeg, b'\x89PNG\r\n\x1a\n': _png, b'GIF87a': _gif, b'GIF89a': _gif, b'BM': _bmp,
  b'II*\0': _tiff, b'MM\0*': _tiff, b'II+\0': _tiff, b'MM\0+': _tiff,
}  # fmt: skip
