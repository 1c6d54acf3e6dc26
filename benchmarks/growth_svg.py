"""The rows of benchmarks/growth.py as pictures for the docs: small charts with logarithmic axes, side by side."""

import html
import math

W, H, LEFT, RIGHT, TOP, BOTTOM = 250, 206, 46, 14, 40, 50  # of one chart, in SVG units
COLOURS = '#0b6bcb', '#c2410c', '#15803d'
NAMES = {'batch': 'pictures of a batch', 'image': 'tokens', 'depth': 'layers', 'width': 'width', 'devices': 'devices'}
QUANTITIES = {'seconds': 'CPU seconds of a step', 'temporaries_mib': 'Memory beside its arguments, MiB'}
STYLE = (
  'text{font:11px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600;font-size:12px}.tick{fill:#6b7280}'
  '.grid{stroke:#e5e7eb}.line{fill:none;stroke-width:2}.guide{stroke:#9ca3af;stroke-dasharray:3 3;fill:none}'
)


def number(value):
  """A number as a tick says it: 0.05, 4, 1,024."""
  return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def slope(points):
  """The power with which y grows with x: of the line of least squares through their logarithms."""
  x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
  mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
  return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def ticks(low, high):
  """A few round numbers between low and high, two positive numbers: as a rule 1, 2 and 5 times powers of ten."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  round_ones = lambda *digits: [m * 10**p for p in powers for m in digits if low * 0.999 <= m * 10**p <= high * 1.001]
  few = round_ones(1, 2, 5)
  few = few if len(few) > 2 else round_ones(1, 2, 3, 4, 5, 6, 8)
  return few if len(few) <= 6 else [value for value in few if math.log10(value) % 1 < 1e-9] or few[::2]


def chart(title, across, series):
  """An SVG group of lines over logarithmic axes.   series: {name: [(x, y), ...]}, all above 0."""
  flat = [point for points in series.values() for point in points]
  stops = sorted({p[0] for p in flat})
  low, high = min(p[1] for p in flat), max(p[1] for p in flat)
  low, high = (low / 1.3, high * 1.3) if high / low < 1.7 else (low / 1.08, high * 1.08)
  at = lambda value, a, b, start, stop: start + math.log(value / a) / (math.log(b / a) or 1) * (stop - start)
  x = lambda value: at(value, stops[0], stops[-1], LEFT, W - RIGHT)
  y = lambda value: at(value, low, high, H - BOTTOM, TOP)
  out = [f'<text class="title" x="4" y="14">{html.escape(title)}</text>']
  for value in ticks(low, high):
    out.append(f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
    out.append(f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
  for value in stops:
    out.append(f'<text class="tick" x="{x(value):.1f}" y="{H - 34}" text-anchor="middle">{number(value)}</text>')
  out.append(f'<text x="{(LEFT + W - RIGHT) / 2}" y="{H - 19}" text-anchor="middle">{html.escape(across)}</text>')
  left = 4
  for i, (name, points) in enumerate(series.items()):
    path = 'M' + 'L'.join(f'{x(a):.1f} {y(b):.1f}' for a, b in points)
    out.append(f'<path class="line" stroke="{COLOURS[i]}" d="{path}"/>')
    out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{COLOURS[i]}"/>' for a, b in points]
    said = (name if len(series) > 2 else f'{name} ^{slope(points):.2f}').strip()  # there is room for two powers
    out.append(f'<text x="{left}" y="29" style="fill:{COLOURS[i]}">{html.escape(said)}</text>')
    left += 7 * len(said) + 8
  return ''.join(out)


def page(charts, columns, words):
  """An SVG of charts (groups) in rows of so many; words: what it shows, for who cannot see it."""
  rows = -(-len(charts) // columns)
  placed = ''.join(
    f'<g transform="translate({i % columns * W},{i // columns * H})">{each}</g>' for i, each in enumerate(charts)
  )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * W} {rows * H}" width="{columns * W}" '
    f'height="{rows * H}" role="img" aria-label="{html.escape(words)}"><style>{STYLE}</style>'
    f'<rect width="100%" height="100%" fill="#fff"/>{placed}</svg>\n'
  )


def series_of(rows, axis, quantity):
  """{form: [(x, y), ...]} of the rows of an axis; x is the number of tokens for images."""
  out = {}
  for row in sorted((row for row in rows if row['axis'] == axis), key=lambda row: row['value']):
    if row.get(quantity):
      out.setdefault(row['form'], []).append((row['tokens'] if axis == 'image' else row['value'], row[quantity]))
  return {form: points for form, points in out.items() if len(points) > 1}


def pictures(rows, scaling):
  """{file name: SVG} of the rows, and those of scaling.py, as far as there are some."""
  charts, out = [], {}
  for quantity, title in {**QUANTITIES, 'compile_seconds': 'CPU seconds to compile'}.items():
    for axis in ('batch', 'image', 'depth', 'width'):
      series = series_of(rows, axis, quantity)
      if series:
        charts.append(chart(title, NAMES[axis], series))
  if charts:
    out['growth.svg'] = page(charts, 4, 'Time, memory and compilation of a training step against its sizes')
  words = {'sent_mib': 'MiB that a device sends', 'arguments_mib': 'MiB of state on a device',
           'temporaries_mib': 'MiB beside it'}  # fmt: skip
  charts = [chart(words[key], 'devices', series) for key in words if (series := series_of(rows, 'devices', key))]
  chips = {}
  for row in sorted(scaling, key=lambda row: row['chips']):
    if row['sent_mib']:
      chips.setdefault(f'{row["model"]} {row["layout"]}', {})[row['chips']] = row['sent_mib']
  series = {name: list(points.items()) for name, points in chips.items() if len(points) > 1}
  charts += [chart('MiB that a chip sends, planned', 'chips', dict(list(series.items())[:3]))] if series else []
  if charts:
    out['growth_devices.svg'] = page(charts, len(charts), 'What devices exchange and hold, against their number')
  return out


def write(rows, scaling, folder):
  """Writes the pictures into a folder and prints the powers as a Markdown table."""
  for name, drawn in pictures(rows, scaling).items():
    (folder / name).write_text(drawn)
  print('| against | form | time | memory beside arguments | compilation |\n|' + ' --- |' * 5)
  for axis in ('batch', 'image', 'depth', 'width'):
    found = {key: series_of(rows, axis, key) for key in (*QUANTITIES, 'compile_seconds')}
    for form in found['seconds']:
      said = ' | '.join(f'{slope(found[key][form]):.2f}' if form in found[key] else '' for key in found)
      print(f'| {NAMES[axis]} | {form} | {said} |')
