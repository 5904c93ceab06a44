//! Plots as inline SVG: lines over axes whose ticks we choose ourselves.
//!
//! Values become plain coordinates here (logarithms, nines), so that every plot is of one kind.

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::Latencies;

/// Width and height in CSS pixels; the page scales it down where there is less room.
const SIZE: (u32, u32) = (980, 420);
/// Colours that stay apart for the colour-blind and in grey (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Where the percentile axis has its ticks.
const NINES: [(f64, &str); 6] =
    [(0.0, "min"), (0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99")];

/// One line with its name.
pub struct Line<'a> {
    pub label: &'a str,
    /// Coordinates on the axes of its plot, from left to right.
    pub points: Vec<(f64, f64)>,
    /// A companion of the line before it, in that one's colour.
    pub is_thin: bool,
}

/// An axis: what it shows, and the places that have a label.
#[derive(Clone)]
pub struct Axis {
    title: String,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Latencies on a logarithmic scale that holds all of `shown`.
    pub fn latency(shown: impl IntoIterator<Item = Duration>) -> Self {
        let logs: Vec<f64> = shown.into_iter().map(log_of).collect();
        let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (least, most) = if least > most { (2.0, 3.0) } else { (least, most) };
        let steps = (-9..30).map(|step| {
            let mantissa = [1.0, 2.0, 5.0][usize::try_from((step + 9) % 3).unwrap_or(0)];
            mantissa * 10_f64.powi((step + 9) / 3 - 3)
        });
        let all: Vec<f64> = steps.map(f64::log10).collect();
        let first = all.iter().rposition(|log| *log <= least).unwrap_or(0);
        let last = all.iter().position(|log| *log >= most).unwrap_or(all.len() - 1);
        let inside = all.get(first..=last.max(first + 1)).unwrap_or_default();
        // With many decades only the tens have a label.
        let is_kept = |log: &&f64| inside.len() <= 12 || (*log - log.round()).abs() < 1e-9;
        let mut ticks: Vec<_> = inside.iter().filter(is_kept).map(labelled).collect();
        for end in [inside.first(), inside.last()].into_iter().flatten() {
            if !ticks.iter().any(|(at, _)| at == end) {
                ticks.push((*end, String::new()));
            }
        }
        Self { title: "latency".to_owned(), ticks }
    }

    /// Ratios on a logarithmic scale, from and to as logarithms; 1 has a tick.
    pub fn ratio(from: f64, to: f64) -> Self {
        let steps: &[f64] = match to - from {
            width if width < 0.5 => &[0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
            _ => &[0.001, 0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0, 10_000.0],
        };
        let first = steps.iter().rposition(|step| step.log10() <= from).unwrap_or(0);
        let last = steps.iter().position(|step| step.log10() >= to).unwrap_or(steps.len() - 1);
        let used = steps.get(first..=last).unwrap_or_default().iter();
        let ticks = used.map(|step| (step.log10(), format!("{}×", trim(*step)))).collect();
        Self { title: "times as long".to_owned(), ticks }
    }

    /// Percentiles, each nine as wide as the one before.
    pub fn percentiles() -> Self {
        let ticks = NINES.map(|(share, label)| (nines(share), label.to_owned()));
        Self { title: "share of lookups that waited no longer".to_owned(), ticks: ticks.into() }
    }

    /// The same as far as the first tick from `most` on.
    #[must_use]
    pub fn up_to(mut self, most: f64) -> Self {
        let last = self.ticks.iter().position(|(at, _)| *at >= most);
        self.ticks.truncate(last.map_or(usize::MAX, |last| (last + 1).max(2)));
        self
    }

    /// Its last tick.
    pub fn end(&self) -> f64 {
        self.range().end
    }

    /// Plain numbers from `from` to `to`, with a label that ends in `unit`.
    pub fn plain(title: impl Display, from: f64, to: f64, unit: &str) -> Self {
        Self::steps(title, from..to, step_for((to - from).max(f64::MIN_POSITIVE)), unit)
    }

    /// Counts from 0 to `most`: nothing lies between two of them.
    pub fn counts(title: impl Display, most: u64) -> Self {
        let most = most.max(1) as f64;
        Self::steps(title, 0.0..most, step_for(most).max(1.0), "")
    }

    /// Plain numbers, a label at each step.
    fn steps(
        title: impl Display,
        Range { start: from, end: to }: Range<f64>,
        step: f64,
        unit: &str,
    ) -> Self {
        let (first, last) = ((from / step).floor(), (to / step).ceil());
        let mut ticks = Vec::new();
        let mut at = first;
        while at <= last {
            ticks.push((at * step, format!("{}{unit}", trim(at * step))));
            at += 1.0;
        }
        Self { title: title.to_string(), ticks }
    }

    /// Names in a row, each in the middle of a stretch of width 1.
    pub fn names(names: &[String]) -> Self {
        let end = |at| (at, String::new());
        let middle = |(index, name): (u32, &String)| (f64::from(index) + 0.5, name.clone());
        let mut ticks = vec![end(0.0)];
        ticks.extend((0..).zip(names).map(middle));
        ticks.push(end(names.len() as f64));
        Self { title: String::new(), ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        let width = f64::from(limit.1 - limit.0);
        limit.0 + ((value - start) / (end - start) * width).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(at, _)| *at).collect()
    }

    /// The first and the last tick.
    fn range(&self) -> Range<f64> {
        let at = self.ticks.iter().map(|(at, _)| *at);
        let (from, to) = (at.clone().fold(f64::INFINITY, f64::min), at.fold(f64::MIN, f64::max));
        if to > from { from..to } else { from..from + 1.0 }
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        trim(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        let near = self.ticks.iter().find(|(tick, _)| (tick - value).abs() < 1e-9);
        near.map_or(String::new(), |(_, label)| label.clone())
    }
}

/// A tick of a logarithmic axis, with its label.
fn labelled(log: &f64) -> (f64, String) {
    let micros = 10_f64.powf(*log);
    let label = match micros {
        m if m < 1.0 => format!("{} ns", trim(m * 1000.0)),
        m if m < 1000.0 => format!("{} µs", trim(m)),
        m if m < 1_000_000.0 => format!("{} ms", trim(m / 1000.0)),
        m => format!("{} s", trim(m / 1_000_000.0)),
    };
    (*log, label)
}

/// A number with at most three decimals, without zeroes behind.
fn trim(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A round step that gives five to twelve ticks.
fn step_for(width: f64) -> f64 {
    let decade = 10_f64.powf(width.log10().floor() - 1.0);
    let fits = |factor: &f64| width / (decade * factor) <= 12.0;
    [1.0, 2.0, 5.0, 10.0].into_iter().find(fits).unwrap_or(10.0) * decade
}

/// The coordinate of a latency: the logarithm of its microseconds.
pub fn log_of(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e6).max(0.001).log10()
}

/// The coordinate of a share of all: how many nines it has; half of all is 0.3.
pub fn nines(share: f64) -> f64 {
    -(1.0 - share.min(0.999_999)).log10()
}

/// The percentile curve of `latencies`, as far as there are lookups to tell.
pub fn curve(latencies: &Latencies) -> Vec<(f64, f64)> {
    shares(latencies.count())
        .into_iter()
        .map(|share| (nines(share), log_of(latencies.quantile(share))))
        .collect()
}

/// Shares from 0 to 0.9999, no further than `count` lookups can tell.
pub fn shares(count: u64) -> Vec<f64> {
    let most = nines(1.0 - 1.0 / count.max(2) as f64).min(4.0);
    let last = most / 0.02;
    let mut shares = Vec::new();
    let mut at = 0.0;
    while at <= last {
        shares.push(1.0 - 10_f64.powf(-at * 0.02));
        at += 1.0;
    }
    shares
}

/// One bar for each name of the axis below.
pub struct Bars<'a> {
    pub label: &'a str,
    pub heights: Vec<f64>,
}

/// Draws bars beside each other over an axis of [`Axis::names`], each with its height above it.
pub fn bars(x: &Axis, y: &Axis, series: &[Bars<'_>]) -> String {
    let mut out = String::new();
    // As in `svg`.
    let _ = draw_bars(&mut out, x, y, series);
    out
}

/// Draws into `out`.
fn draw_bars(
    out: &mut String,
    x: &Axis,
    y: &Axis,
    series: &[Bars<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    let mut chart = framed(&root, x, y)?;
    // A tenth of the stretch stays free on each side.
    let width = 0.8 / series.len().max(1) as f64;
    for (index, bars) in series.iter().enumerate() {
        let colour = COLOURS.iter().cycle().nth(index).copied().unwrap_or(BLACK);
        let left = |name: usize| name as f64 + 0.1 + index as f64 * width;
        let bar = |(name, height): (usize, &f64)| {
            Rectangle::new([(left(name), 0.0), (left(name) + width, *height)], colour.filled())
        };
        chart
            .draw_series(bars.heights.iter().enumerate().map(bar))?
            .label(bars.label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 22, y + 5)], colour.filled()));
        let style = ("sans-serif", 12).into_font().color(&colour);
        let lift = y.range().end * 0.045;
        let height = |(name, height): (usize, &f64)| {
            let text =
                if *height < 0.01 && *height > 0.0 { "<0.01".into() } else { trim(round(*height)) };
            Text::new(text, (left(name) + width * 0.2, height + lift), style.clone())
        };
        chart.draw_series(bars.heights.iter().enumerate().map(height))?;
    }
    with_legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    root.present()?;
    Ok(())
}

/// Two decimals.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// Draws the lines; the SVG has a `viewBox` and no outer references.
pub fn svg(x: &Axis, y: &Axis, lines: &[Line<'_>]) -> String {
    let mut out = String::new();
    // Drawing into a text does not fail; what would be an empty plot is told by its emptiness.
    let _ = draw(&mut out, x, y, lines);
    out
}

/// Draws into `out`.
fn draw(
    out: &mut String,
    x: &Axis,
    y: &Axis,
    lines: &[Line<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    let mut chart = framed(&root, x, y)?;
    let mut colour = COLOURS.iter().cycle();
    let mut current = COLOURS[0];
    for line in lines {
        if !line.is_thin {
            current = *colour.next().unwrap_or(&COLOURS[0]);
        }
        let style = match line.is_thin {
            true => current.mix(0.6).stroke_width(1),
            false => current.stroke_width(2),
        };
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
    }
    if lines.len() > 1 {
        with_legend(&mut chart, emptiest(x, y, lines))?;
    }
    root.present()?;
    Ok(())
}

/// The corner, or the middle of a side, with the fewest points under a legend.
fn emptiest(x: &Axis, y: &Axis, lines: &[Line<'_>]) -> SeriesLabelPosition {
    use SeriesLabelPosition as At;
    let places = [
        (At::UpperLeft, 0, 70),
        (At::UpperRight, 80, 70),
        (At::LowerRight, 80, 0),
        (At::LowerLeft, 0, 0),
        (At::UpperMiddle, 40, 70),
        (At::LowerMiddle, 40, 0),
    ];
    let hidden = |left: i32, low: i32| {
        let points = lines.iter().flat_map(|line| &line.points);
        let at = points.map(|(across, up)| (x.map(across, (0, 100)), y.map(up, (0, 100))));
        at.filter(|(x, y)| (left..left + 20).contains(x) && (low..low + 30).contains(y)).count()
    };
    let best = places.into_iter().min_by_key(|(_, left, low)| hidden(*left, *low));
    best.map_or(At::UpperLeft, |(place, _, _)| place)
}

/// A drawing area with both axes.
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;

/// Lays out the axes and their grid.
fn framed<'a>(
    root: &DrawingArea<SVGBackend<'a>, Shift>,
    x: &Axis,
    y: &Axis,
) -> Result<Chart<'a>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_right(36)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(x.clone(), y.clone())
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(215, 215, 215))
        .axis_style(RGBColor(120, 120, 120))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 14))
        .x_desc(&x.title)
        .y_desc(&y.title)
        // All of our ticks, and no more.
        .x_labels(x.ticks.len())
        .y_labels(y.ticks.len())
        .draw()
        .map_err(|error| error.to_string())?;
    Ok(chart)
}

/// Names the series.
fn with_legend(
    chart: &mut Chart<'_>,
    place: SeriesLabelPosition,
) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_series_labels()
        .position(place)
        .margin(8)
        .legend_area_size(28)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()
        .map_err(|error| error.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_axis_holds_everything_and_labels_round_values() {
        let axis = Axis::latency([Duration::from_micros(130), Duration::from_millis(7)]);
        let labels: Vec<_> = axis.ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms", "10 ms"]);
        let wide = Axis::latency([Duration::from_micros(20), Duration::from_secs(10)]);
        assert!(wide.ticks.len() <= 12, "{}", wide.ticks.len());
        assert!(wide.range().end >= log_of(Duration::from_secs(10)));
        assert_eq!(Axis::latency([]).range(), 2.0..3.0);
    }

    #[test]
    fn a_curve_ends_where_the_lookups_can_tell_no_more() {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|millis| latencies.record(Duration::from_millis(millis)));
        let curve = curve(&latencies);
        let (x, y) = *curve.last().expect("points");
        assert!((1.9..=2.001).contains(&x), "{x}");
        assert!((y - log_of(Duration::from_millis(99))).abs() < 0.01, "{y}");
        assert!(curve.is_sorted_by(|one, other| one.0 < other.0 && one.1 <= other.1));
    }

    #[test]
    fn every_bar_has_its_name_below_and_its_height_above() {
        let names = ["snat".to_owned(), "pair".to_owned()];
        let of = |label, heights: [f64; 2]| Bars { label, heights: heights.into() };
        let series = [of("before", [12.3, 0.0]), of("after", [0.0, 0.0])];
        let text = bars(&Axis::names(&names), &Axis::plain("lost", 0.0, 12.3, " %"), &series);
        for part in ["snat", "pair", "12.3", "before", "after"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_plot_is_one_svg_with_a_line_for_each_series_and_no_outside() {
        let (x, y) = (Axis::percentiles(), Axis::plain("ratio", 0.8, 1.3, "×"));
        let line = |label| Line { label, points: vec![(0.0, 0.9), (2.0, 1.1)], is_thin: false };
        let text = svg(&x, &y, &[line("198.18.0.1"), line("198.18.0.2 <b>")]);
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        assert!(text.contains("viewBox") && text.contains("p99.99") && text.contains("1.1×"));
        assert_eq!(
            text.matches("stroke-width=\"2\" points").count(),
            4,
            "two lines and their legend"
        );
        assert!(text.contains("&lt;b&gt;") && !text.contains("href"));
    }
}
