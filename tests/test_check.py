"""vit_jax check: what it prints, its JSON and exit codes; samples of the proofs under tests/reliability/."""

import io
import json
import pathlib
import random
import sys

import pytest

from vit_jax import check, cli, console, scan

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'reliability'))

import fuzz  # noqa: E402
import pictures  # noqa: E402

PIECES = pictures.Pieces(random.Random(2))


def fill(folder, *names):
  for name in names:
    pictures.write(folder / name, pictures.PLAIN[name.rpartition('.')[2]](PIECES()))


def test_of_faults_of_all_kinds_each_is_found_and_no_healthy_file(tmp_path):
  """A sample of python tests/reliability/pictures.py --faults=200."""
  faults = 2 * len(pictures.KINDS)
  assert pictures.trial(tmp_path / 'pictures', faults=faults, healthy_count=80, seed=11) == (faults, faults, 0, 86)


def test_fuzzed_files_give_no_crash_no_hang_and_bounded_memory(tmp_path):
  """A sample of python tests/reliability/fuzz.py --files=3000, which goes on where it was ended."""
  out = tmp_path / 'lines.jsonl'
  first = fuzz.run(12, out)
  out.write_bytes(out.read_bytes() + b'{"file": 12, "by')  # killed in the midst of a line
  lines = fuzz.run(30, out)
  told, well = fuzz.summary(lines)
  assert well and told.startswith('30 files: 0 crashes, 0 hangs, peak memory ')
  assert lines[:12] == first and [line['file'] for line in lines] == list(range(30))
  assert {line['decode'] for line in lines} == {'picture', 'refused'}


def test_the_fuzzers_own_alarms_go_off(tmp_path, monkeypatch):
  for line in (
    {'hang': 60},
    {'died': -11},
    {'decode': 'crash: KeyError()', 'peak': 1},
    {'check': 'healthy', 'peak': 10**6},
  ):
    assert not fuzz.summary([{'file': 0, **line}])[1]
  monkeypatch.setitem(fuzz.WAYS, 'decode', lambda data: {}['key'])
  assert fuzz.outcome(b'')['decode'] == "crash: KeyError('key')"
  monkeypatch.setattr(fuzz.sys, 'executable', '/bin/false')
  assert [line.get('died') for line in fuzz.run(2, tmp_path / 'died.jsonl')] == [1, 1]


@pytest.fixture
def folder(tmp_path):
  """Five healthy pictures in two splits, and one fault of most kinds."""
  fill(tmp_path, *(f'{split}/{name}/{i}.jpg' for split in ('train', 'test') for name in ('cat', 'dog') for i in (1, 2)))
  whole = (tmp_path / 'train/cat/1.jpg').read_bytes()
  pictures.write(tmp_path / 'train/cat/3.jpg', whole[:-100])
  pictures.write(tmp_path / 'test/cat/3.jpg', whole)
  pictures.write(tmp_path / 'train/dog/3.png', b'')
  pictures.write(tmp_path / 'train/dog/a\x1b[31m\n.png', (tmp_path / 'train/dog/2.jpg').read_bytes())
  (tmp_path / 'train/bird').mkdir()
  pictures.write(tmp_path / 'train/about.txt', b'Pictures of animals')
  return tmp_path


def test_the_text_has_the_summary_first(folder, capsys):
  assert cli.main(['check', str(folder)]) == 1
  size = sum(path.stat().st_size for path in folder.rglob('*.*g'))
  assert capsys.readouterr().out.splitlines() == [
    f'{folder}: 12 pictures (7 train, 5 test), {size / 1000:.3g} kB',
    '4 faults, 2 groups of the same picture, 1 of them in several splits',
    '  empty            1  no bytes',
    '  truncated        1  cut off',
    '  suffix           1  another format than the name says',
    '  class            1  classes without pictures, or of the test set alone',
    '  leak             1  the same picture in several splits: tested on what was trained on',
    '  duplicate        1  the same picture more than once in a split',
    '',
    'empty (1)',
    '  train/dog/3.png: an empty file',
    '',
    'truncated (1)',
    '  train/cat/3.jpg: ends inside its pixels, without the mark of its end',
    '',
    'suffix (1)',
    '  train/dog/a\\x1b[31m\\n.png: JPEG inside, PNG by its name',
    '',
    'class (1)',
    '  train/bird: a class without pictures',
    '',
    'leak (1)',
    '  train/cat/1.jpg = test/cat/3.jpg (same bytes)',
    '',
    'duplicate (1)',
    '  train/dog/2.jpg = train/dog/a\\x1b[31m\\n.png (same bytes)',
    '',
    'notes',
    '  not tested: 1 class of the training set, bird',
    '  not looked at: 1 other file',
    '',
    'classes',
    '  bird         0 train         0 test',
    '  cat          3 train         3 test',
    '  dog          4 train         2 test',
  ]


def test_the_json_says_the_same(folder, capsys):
  assert cli.main(['check', str(folder), '--json']) == 1
  found = json.loads(capsys.readouterr().out)
  assert {key: found[key] for key in ('format', 'path', 'pictures', 'ok')} == {
    'format': 1, 'path': str(folder), 'pictures': 12, 'ok': False,
  }  # fmt: skip
  assert list(found['counts']) == list(check.MEANING) and sum(found['counts'].values()) == 6
  assert {fault['kind']: fault['path'] for fault in found['faults']} == {
    'empty': 'train/dog/3.png', 'truncated': 'train/cat/3.jpg', 'suffix': 'train/dog/a\x1b[31m\n.png',
    'class': 'train/bird',
  }  # fmt: skip
  assert found['duplicates'][0] == {
    'kind': 'leak', 'same': 'bytes', 'paths': ['train/cat/1.jpg', 'test/cat/3.jpg'], 'splits': ['test', 'train'],
    'classes': ['cat'],
  }  # fmt: skip
  assert found['splits']['train'] == {
    'pictures': 7, 'loose': 0, 'classes': {'bird': 0, 'cat': 3, 'dog': 4}, 'readable': {'bird': 0, 'cat': 2, 'dog': 3},
  }  # fmt: skip


def test_what_is_healthy_ends_with_0_and_what_is_not_there_with_2(tmp_path, capsys):
  fill(tmp_path, 'cat/1.jpg', 'dog/2.png')
  assert cli.main(['check', str(tmp_path)]) == 0
  assert 'No faults.' in capsys.readouterr().out
  (tmp_path / 'empty').mkdir()
  for words, said in (
    (['/no/such/folder'], 'no such folder'),
    ([str(tmp_path / 'empty')], 'no class folders'),
    ([], 'DIR'),
  ):
    assert cli.main(['check', *words]) == 2
    out, err = capsys.readouterr()
    assert out == '' and said in err and len(err.splitlines()) == 1


def test_many_lines_are_shortened_unless_all_are_wanted(tmp_path, capsys):
  fill(tmp_path, 'train/fine/1.jpg', 'test/fine/2.jpg')
  for i in range(30):
    pictures.write(tmp_path / 'train' / f'class {i:02}' / 'x.jpg', b'')
  assert cli.main(['check', str(tmp_path)]) == 1
  short = capsys.readouterr().out
  assert cli.main(['check', str(tmp_path), '--all']) == 1
  every = capsys.readouterr().out
  assert short.count('x.jpg: an empty file') == 10 and every.count('x.jpg: an empty file') == 30
  assert short.count('and 20 more; --all shows them') == 2 and short.count('and 21 more; --all shows them') == 1
  assert 'more; --all' not in every and 'none of its 1 pictures can be read' in every
  assert 'class 00, class 01, class 02, class 03, class 04, ...' in short


def test_notes_are_no_faults(tmp_path):
  fill(tmp_path, *(f'cat/{i}.bmp' for i in range(10)), 'dog/1.bmp', 'loose.bmp')
  found = check.told(tmp_path, scan.run(tmp_path))
  assert found['ok'] and found['notes'] == [
    'all: cat has 10 pictures, 10 times as many as dog (1)',
    'all: 1 picture in no class, which training leaves',
  ]
  (tmp_path / 'dog/2.bmp').write_bytes((tmp_path / 'cat/3.bmp').read_bytes())
  found = check.told(tmp_path, scan.run(tmp_path))
  assert not found['ok'] and found['notes'][-2:] == [
    'no split is given: what is held out for a test may have its duplicate in what is trained on',
    'with more than one class: 1 group of the same picture',
  ]
  assert '  cat/3.bmp = dog/2.bmp (same bytes; cat and dog)' in check.text(found)


def test_pictures_that_training_leaves_are_told(tmp_path):
  fill(tmp_path, 'train/cat/1.bmp', 'test/1.bmp', 'test/2.bmp', 'above.bmp')
  assert check.told(tmp_path, scan.run(tmp_path))['notes'] == [
    'test: 2 pictures in no class, which training leaves',
    'outside of the splits: 1 picture in no class, which training leaves',
  ]


def test_any_number_of_labels_is_no_fault(tmp_path):
  fill(tmp_path, '1.jpg', '2.jpg', '3.jpg')
  (tmp_path / 'all.csv').write_text('path,labels,split\n1.jpg,cat;dog,train\n2.jpg,,train\n3.jpg,cat,test\n')
  found = check.told(tmp_path / 'all.csv', scan.run(tmp_path / 'all.csv'))
  assert found['ok'] and found['notes'] == [] and found['splits']['train'] == {
    'pictures': 2, 'loose': 0, 'classes': {}, 'readable': {},
  }  # fmt: skip


def test_long_groups_are_for_reading():
  group = {'paths': [f'{i}.jpg' for i in range(9)], 'same': 'pixels', 'classes': []}
  assert check._twins(group) == '0.jpg = 1.jpg = 2.jpg = 6 more (same pixels)'


def test_libraries_remarks_do_not_reach_the_terminal(tmp_path, capfd):
  data = bytearray(pictures.encode(PIECES(), 'TIFF', compression='tiff_lzw'))
  data[200:260] = bytes(60)
  pictures.write(tmp_path / 'a.tif', bytes(data))
  fill(tmp_path, 'b.tif')
  assert cli.main(['check', str(tmp_path)]) == 1
  out, err = capfd.readouterr()
  assert 'corrupt (1)\n  a.tif: ' in out and err == ''


def test_a_terminal_is_told_how_far_it_is():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  assert list(console.progress(iter(range(5)), 'check', 5, terminal)) == list(range(5))
  assert 'check' in terminal.getvalue() and '100%' in terminal.getvalue()


def test_ctrl_c_is_one_line(tmp_path, capfd, monkeypatch):
  fill(tmp_path, *(f'{i}.jpg' for i in range(40)))

  def interrupted(items, word, total, terminal):
    yield next(items)
    raise KeyboardInterrupt

  monkeypatch.setattr(console, 'progress', interrupted)
  assert cli.main(['check', str(tmp_path)]) == 130
  assert capfd.readouterr() == ('', 'interrupted\n')
