"""Plain values against annotations and defaults."""

import typing

import pytest

from vit_jax.signatures import MISFIT, REQUIRED, called, english, fit, meant, plain, signature


@pytest.mark.parametrize(
  ('value', 'kind', 'expected'),
  [
    (1000.0, int, 1000),
    (3, int, 3),
    (1e3, int | None, 1000),
    (None, int | None, None),
    (3, float, 3.0),
    (0.5, int | float, 0.5),
    (3, int | float, 3),
    (True, bool, True),
    ('a', str, 'a'),
    ('a', bool | str, 'a'),
    ('avg', typing.Literal['avg', 'token'], 'avg'),
    ([1, 2.0], list[int], [1, 2]),
    ([1, 2], tuple[float, float], [1.0, 2.0]),
    ([1, 2, 3], tuple[int, ...], [1, 2, 3]),
    ([], tuple, []),
    ({'a': 1}, dict, {'a': 1}),
    ({'a': 1}, typing.Any, {'a': 1}),
  ],
)
def test_values_that_fit_come_out_in_the_type_wanted(value, kind, expected):
  fitted = fit(value, kind)
  assert fitted == expected
  assert type(fitted) is type(expected)


@pytest.mark.parametrize(
  ('value', 'kind'),
  [
    (0.5, int),
    (float('inf'), int),
    (float('nan'), int),
    (True, int),
    (True, float),
    (1, bool),
    ('1', int),
    (1, str),
    (None, int),
    ('mean', typing.Literal['avg', 'token']),
    (True, typing.Literal[1]),
    ('ab', list[str]),
    ([1, 'b'], list[int]),
    ([1], tuple[int, int]),
    ([1], dict),
  ],
)
def test_values_that_do_not_fit(value, kind):
  assert fit(value, kind) is MISFIT


def test_a_signature_gives_types_from_annotations_then_from_defaults():
  class Meta(type):
    def __call__(cls, *args, **kwargs):
      pass

  class Thing(metaclass=Meta):
    def __init__(self, first, *rest, size: int | None = None, rate=0.5, name=None, path, **others):
      pass

  assert signature(Thing, ('path',)) == {
    'first': (typing.Any, REQUIRED),
    'size': (int | None, None),
    'rate': (float, 0.5),
    'name': (typing.Any, None),
  }


def test_words():
  assert called(plain) == 'signatures.plain()'
  assert plain({'a': (1, [(2,)])}) == {'a': [1, [[2]]]}
  assert english(int | None) == 'a whole number or none'
  assert english(typing.Literal['a', 'b']) == "'a' or 'b'"
  assert english(tuple[int, int]) == 'a list of 2'
  assert meant('tokn', ['avg', 'token']) == "; did you mean 'token'?"
  assert meant('zzz', ['avg', 'token']) == ''
