"""Items in order by threads, few at a time, and an end in the middle."""

import threading

import pytest

from vit_jax import threads


def test_results_come_in_order_and_few_are_ahead():
  begun = []

  def slow(item):
    begun.append(item)
    return item * item

  found = threads.each(slow, range(10_000), ahead=2)
  assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
  assert len(begun) <= 5 + 2 * threads.cpus() + 1
  assert list(found) == [i * i for i in range(5, 10_000)]


def test_an_error_is_raised_where_its_item_stands_and_the_rest_does_not_begin():
  begun = []

  def fails(item):
    begun.append(item)
    return 1 // (3 - item)

  found = threads.each(fails, range(10_000))
  assert [next(found) for _ in range(3)] == [0, 0, 1]
  with pytest.raises(ZeroDivisionError):
    next(found)
  assert len(begun) < 1000 and not [t for t in threading.enumerate() if t.name.startswith('vit_jax.each')]
