"""diskfull.py: a full disk is known by whoever says so, sizes are readable, and nothing but its noise is hidden."""

import errno
import logging
import sys
import types

import pytest

from vit_jax import diskfull


def chained(inner):
  try:
    try:
      raise inner
    except Exception as error:
      raise RuntimeError('could not save') from error
  except RuntimeError as error:
    return error


@pytest.mark.parametrize(
  'error, said',
  [
    (OSError(errno.ENOSPC, 'whatever'), 'No space left on device'),
    (OSError(errno.EDQUOT, 'Disk quota exceeded', 'file'), 'Disk quota exceeded'),
    (ValueError('RESOURCE_EXHAUSTED: Failed to write 177 bytes: File too large'), 'File too large'),
    (chained(ValueError("No space left on device [os_error_code='28']")), 'No space left on device'),
    (OSError(errno.EIO, 'Input/output error'), None),
    (chained(MemoryError()), None),
    (ValueError('RESOURCE_EXHAUSTED: Out of memory'), None),
    (None, None),
  ],
)
def test_a_full_disk_is_known_by_number_and_by_words(error, said):
  assert diskfull.cause(error) == said


def test_the_line_is_what_a_user_sees(tmp_path):
  full = diskfull.DiskFull('needs 2 GB, has 1 GB.')
  assert str(full) == 'needs 2 GB, has 1 GB.' and full.errno == errno.ENOSPC and isinstance(full, OSError)
  assert diskfull.cause(full) == 'No space left on device'
  assert diskfull.free(tmp_path) > 0


def test_sizes_have_three_digits():
  sizes = (0, 5_600, 999_499, 999_500, 4_330_000, 999_600_000, 1_234_000_000_000)
  assert [diskfull.text(size) for size in sizes] == [
    '0 kB', '5.6 kB', '999 kB', '1 MB', '4.33 MB', '1 GB', '1.23 TB'
  ]  # fmt: skip


def test_only_the_noise_of_a_failed_save_is_hidden(caplog, monkeypatch):
  shown = []
  monkeypatch.setattr(sys, 'unraisablehook', shown.append)
  logger, asyncio = logging.getLogger('absl'), logging.getLogger('asyncio')
  for one in (logger, asyncio):
    monkeypatch.setattr(one, 'filters', [])
  diskfull.quiet.cache_clear()
  diskfull.quiet()
  diskfull.quiet()
  assert len(logger.filters) == 1
  full, other = OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EIO, 'Input/output error')
  gone = ValueError('NOT_FOUND: Error reading run/checkpoints/3.saving.orbax-checkpoint-tmp/params')
  with caplog.at_level(logging.INFO, 'absl'):
    for error in (full, gone, other):
      logger.error('run() raised an exception', exc_info=error)
    logger.warning('Metadata file does not exist: checkpoints/4.saving.orbax-checkpoint-tmp/_METADATA')
    logger.warning('something else')
    logger.info('Saving to 4.saving')
    asyncio.error('Task exception was never retrieved', exc_info=full)
  assert [record.getMessage() for record in caplog.records] == [
    'run() raised an exception', 'something else', 'Saving to 4.saving'
  ]  # fmt: skip
  assert caplog.records[0].exc_info[1] is other
  for error in (RuntimeError('Event loop is closed'), RuntimeError('other')):
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
  assert [str(one.exc_value) for one in shown] == ['other']
  diskfull.quiet.cache_clear()
