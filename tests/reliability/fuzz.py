"""Spoilt pictures through training's decoder and through `vit_jax check`: no crash, no hang, memory below a bound.

  python tests/reliability/fuzz.py --files=3000 [--seed=0] [--out=fuzz.jsonl] [--limit=120]

File number i is a function of (seed, i): a JPEG, PNG, GIF, WebP, BMP or TIFF in turn, of any form in
pictures.HEALTHY, spoilt by one of SPOIL once or twice. It goes through transforms.decode, training_image,
evaluation_image and scan.look. A picture, or transforms.Unreadable with one line, is right; another exception or a dead
process is a crash; more than --limit seconds are a hang. One child process takes file after file and is only replaced
when it died or hung. With --out each file's line is kept there, and a later start goes on behind the last one.
"""

import argparse
import io
import json
import pathlib
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).absolute().parent))

import pictures  # noqa: E402

from vit_jax import crops, scan, transforms  # noqa: E402

MEGABYTE = 10**6
BOUND = (scan.PIXEL * transforms.MAX_PIXELS + 300 * MEGABYTE) // MEGABYTE  # MB: one picture at the limit, and Python
SPARE = 1_500  # MB of addresses that need not be memory: libraries, stacks of threads
EXTREMES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 13_000]
GROUPS = ('jpg jpeg jfif mpo', 'png', 'gif', 'webp', 'bmp', 'tif tiff')
MAKERS = [[make for suffix, make in pictures.HEALTHY if suffix.lower() in group.split()] for group in GROUPS]


def flips(data, rng):
  for _ in range(rng.choice([1, 1, 3, 20, 200])):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return data


def head_flips(data, rng):
  """Bits near the start, where the numbers are that lead a decoder."""
  for _ in range(rng.randint(1, 4)):
    data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)
  return data


def field(data, rng):
  """A number of 1, 2 or 4 bytes near the start, or near the end as in a TIFF, becomes an extreme one."""
  form = rng.choice(['<B', '<H', '>H', '<I', '>I'])
  size = struct.calcsize(form)
  near = (
    rng.randrange(min(len(data), 400)) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(min(len(data), 400))
  )
  at = max(0, min(near, len(data) - size))
  data[at : at + size] = struct.pack(form, rng.choice(EXTREMES) & (256**size - 1))
  return data


def cut(data, rng):
  return data[: rng.randrange(len(data))]


def missing(data, rng):
  start = rng.randrange(len(data))
  return data[:start] + data[start + rng.randint(1, 2000) :]


def block(data, rng):
  """Foreign bytes put in, or written over what was there."""
  start, size = rng.randrange(len(data)), rng.choice([1, 16, 512, 5000])
  put = rng.choice([bytes(size), b'\xff' * size, rng.randbytes(size), bytes(data[:size])])
  return data[:start] + put + data[start + (len(put) if rng.random() < 0.5 else 0) :]


def again(data, rng):
  """A piece of it many times, as in a bomb of scans, chunks, blocks or pages."""
  start = rng.randrange(len(data))
  piece = data[start : start + rng.choice([1, 2, 20, 60, 300])]
  return data[:start] + piece * rng.choice([10, 1000, 20_000]) + data[start:]


def splice(data, rng):
  """The start of one file and the end of another."""
  other = rng.choice(rng.choice(MAKERS))(pictures.Pieces(rng)())
  return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def giant(data, rng):
  """Its width and height, wherever they are, become giant ones: some too large, some just not."""
  side = rng.choice([13_000, 30_000, 65_000])
  places = {b'\xff\xd8': data.find(b'\xff\xc0') + 5, b'\x89P': 16, b'GI': 6, b'RI': 24, b'BM': 18}
  at = places.get(bytes(data[:2]))
  if at is None:  # TIFF: tags 256 and 257 hold numbers of 4 bytes
    [start] = struct.unpack_from('<I', data, 4)
    for place in range(start + 2, min(start + 26, len(data) - 12), 12):
      struct.pack_into('<HII', data, place + 2, 4, 1, side)
    return data
  form = {b'\xff\xd8': '>HH', b'\x89P': '>II', b'BM': '<ii'}.get(bytes(data[:2]), '<HH')
  if at + 8 < len(data):
    struct.pack_into(form, data, at, side, side)
  return data


SPOIL = [flips, head_flips, head_flips, field, field, field, cut, missing, block, again, splice, giant]


def checksums(data):
  """A PNG whose chunks have the checksums of what is in them, so that damage gets past those."""
  at = 8
  while at + 12 <= len(data):
    length = struct.unpack_from('>I', data, at)[0]
    if at + 12 + length > len(data):
      break
    struct.pack_into('>I', data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
    at += 12 + length
  return data


def spoilt(seed, number):
  """The bytes of file `number`."""
  rng = random.Random(f'{seed} {number}')
  data = bytearray(rng.choice(MAKERS[number % len(GROUPS)])(pictures.Pieces(rng)()))
  for _ in range(rng.choice([1, 1, 2])):
    data = rng.choice(SPOIL)(data, rng) or bytearray(1)
  if data[:4] == b'\x89PNG' and rng.random() < 0.7:
    data = checksums(data)
  return bytes(data)


ROW = transforms.preprocessing(32)
WAYS = {
  'decode': transforms.decode,
  'train': lambda data: crops.training_image(data, np.random.default_rng(0), size=32),
  'evaluate': lambda data: transforms.evaluation_image(data, ROW),
}


def outcome(data):
  """{'decode': 'picture' or 'refused', ..., 'check': the kind of fault or 'healthy'}; 'crash' where it is neither."""
  out = {}
  for way, function in WAYS.items():
    try:
      picture = function(data)
      out[way] = 'picture' if picture.dtype == np.uint8 and picture.shape[2:] == (3,) else f'crash: {picture.dtype}'
      del picture  # or it would be there beside the next one
    except transforms.Unreadable as error:
      out[way] = 'refused' if str(error) and '\n' not in str(error) else f'crash: {error!r}'
    except Exception as error:
      out[way] = f'crash: {error!r}'
  try:
    faults = scan.look(io.BytesIO(data), len(data))[0]
    out['check'] = faults[0][0] if faults else 'healthy'
  except Exception as error:
    out['check'] = f'crash: {error!r}'
  return out


def child(seed, start, stop, out):
  """Appends a line for each file from start to stop; ends the process if it needs more addresses than the bound."""
  resource.setrlimit(resource.RLIMIT_AS, ((BOUND + SPARE) * MEGABYTE,) * 2)
  warnings.simplefilter('ignore')
  with open(out, 'a', encoding='utf-8') as lines:
    for number in range(start, stop):
      data = spoilt(seed, number)
      begun = time.monotonic()
      found = outcome(data)
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MEGABYTE
      line = {'file': number, 'bytes': len(data), **found, 'seconds': round(time.monotonic() - begun, 3), 'peak': peak}
      lines.write(json.dumps(line) + '\n')
      lines.flush()


def read(out):
  """The whole lines of a file that may end in half of one, which is cut off."""
  text = out.read_bytes() if out.exists() else b''
  whole = text[: text.rfind(b'\n') + 1]
  if whole != text:
    out.write_bytes(whole)
  return [json.loads(line) for line in whole.splitlines()]


def run(files, out, *, seed=0, limit=120):
  """The lines of all files, whatever becomes of the children; those that are there already are not done again."""
  while (start := len(read(out))) < files:
    words = [
      sys.executable,
      __file__,
      '--child',
      f'--start={start}',
      f'--files={files}',
      f'--seed={seed}',
      f'--out={out}',
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # libtiff writes there
    size, since, hung = -1, time.monotonic(), False
    try:
      while process.poll() is None and not hung:
        time.sleep(0.02)
        now = out.stat().st_size if out.exists() else 0
        size, since = (now, time.monotonic()) if now != size else (size, since)
        hung = time.monotonic() - since > limit + 20 * (size <= 0)  # the first one waits for imports too
    finally:
      process.kill()
      process.wait()
    number = len(read(out))
    if number < files:
      end = {'hang': limit} if hung else {'died': process.returncode}
      with open(out, 'a', encoding='utf-8') as lines:
        lines.write(json.dumps({'file': number, **end}) + '\n')
  return read(out)[:files]


def summary(lines):
  """(the figure as one line, whether all is well)."""
  hangs = sum('hang' in line for line in lines)
  crashes = [line for line in lines if 'died' in line or any(str(word).startswith('crash') for word in line.values())]
  peak = max((line.get('peak', 0) for line in lines), default=0)
  told = f'{len(lines)} files: {len(crashes)} crashes, {hangs} hangs, peak memory {peak:,} MB (bound {BOUND:,} MB)'
  return told, not (crashes or hangs or peak > BOUND)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--files', type=int, default=3000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path, help='where a line for each file is kept (default: nowhere)')
  parser.add_argument('--limit', type=float, default=120, help='seconds for a file, all four ways together')
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--start', type=int, default=0, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    return child(args.seed, args.start, args.files, args.out)
  with tempfile.TemporaryDirectory() as scratch:
    lines = run(args.files, args.out or pathlib.Path(scratch) / 'lines.jsonl', seed=args.seed, limit=args.limit)
  for line in lines:
    if 'hang' in line or 'died' in line or any(str(word).startswith('crash') for word in line.values()):
      print(line)
  taken = [line for line in lines if 'check' in line]
  for number, group in enumerate(GROUPS):
    own = [line for line in taken if line['file'] % len(GROUPS) == number]
    drawn = [line['check'] != 'healthy' for line in own if line['decode'] == 'picture']
    print(
      f'{group.split()[0]}: {len(own)} files, {len(drawn)} decode to a picture, {sum(drawn)} of them named by check'
    )
  print(f'slowest file: {max((line["seconds"] for line in taken), default=0):.1f} s')
  told, well = summary(lines)
  print(told)
  return int(not well)


if __name__ == '__main__':
  sys.exit(main())
