"""What a function's signature says about the plain values it can be given: keys, types, defaults.

An annotation is the type; without one the default's type is; without either anything goes. Config files, flags and
commands are checked against this, so that a default and a type are written once, where they are used.
"""

import collections.abc
import difflib
import inspect
import types
import typing

MISFIT = object()
REQUIRED = inspect.Parameter.empty
NAMES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text', types.NoneType: 'none'}


def signature(function, leave=()):
  """{argument: (type, default or REQUIRED)} of a function or class, without those in `leave`, *args and **kwargs."""
  is_class = inspect.isclass(function)
  function = function.__init__ if is_class else function  # a metaclass, as NNX has, hides what a class takes
  hints, found = typing.get_type_hints(function), {}
  for key, parameter in list(inspect.signature(function).parameters.items())[is_class:]:
    if key not in leave and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
      silent = parameter.default is None or parameter.default is REQUIRED
      found[key] = hints.get(key, typing.Any if silent else type(parameter.default)), parameter.default
  return found


def called(function):
  """'optim.make()' for vit_jax.optim.make."""
  return f'{function.__module__.removeprefix("vit_jax.")}.{function.__qualname__}()'


def plain(value):
  """`value` with tuples as lists, all the way down: as it would come back from JSON."""
  if isinstance(value, dict):
    return {key: plain(child) for key, child in value.items()}
  return [plain(child) for child in value] if isinstance(value, list | tuple) else value


def fit(value, kind):
  """A plain `value` as the annotation `kind` wants it (1e3 becomes 1000 for an int), or MISFIT."""
  base, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
  if base in (typing.Union, types.UnionType):
    return next((fitted for fitted in (fit(value, one) for one in inner) if fitted is not MISFIT), MISFIT)
  if base is typing.Literal:
    return value if any(value == one and type(value) is type(one) for one in inner) else MISFIT
  if base in (int, float):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return base(value) if number and (base is float or float(value).is_integer()) else MISFIT
  if base in (list, tuple, collections.abc.Sequence):
    return _fit_list(value, base, inner)
  if base in (bool, str, dict, types.NoneType):
    return value if isinstance(value, base) else MISFIT
  return value


def _fit_list(value, base, inner):
  """A list whose items fit: `inner` is (item,), or for tuples (item, ...) or one type for each place."""
  if not isinstance(value, list):
    return MISFIT
  fixed = base is tuple and inner and inner[-1] is not ...
  kinds = inner if fixed else (inner[:1] or (typing.Any,)) * len(value)
  fitted = [fit(child, one) for child, one in zip(value, kinds)]
  return fitted if len(kinds) == len(value) and MISFIT not in fitted else MISFIT


def english(kind):
  """What an annotation asks for, in words."""
  base, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
  if base in (typing.Union, types.UnionType):
    return ' or '.join(english(one) for one in inner)
  if base is typing.Literal:
    return ' or '.join(map(repr, inner))
  if base in (list, tuple, collections.abc.Sequence):
    return f'a list of {len(inner)}' if base is tuple and inner and inner[-1] is not ... else 'a list such as [1, 2]'
  return NAMES.get(base, 'a group of keys' if base is dict else str(kind))


def choices(kind):
  """The words that an annotation allows by name."""
  if typing.get_origin(kind) is typing.Literal:
    return [one for one in typing.get_args(kind) if isinstance(one, str)]
  return [word for one in typing.get_args(kind) for word in choices(one)]


def meant(word, words):
  """The end of a sentence, '; did you mean X?', when one of `words` is close to `word`, else nothing."""
  near = difflib.get_close_matches(word, words, 1)
  return f'; did you mean {near[0]!r}?' if near else ''
