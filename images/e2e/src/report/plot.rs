//! Plots of counts, which do not depend on how busy the machine was.

use maud::{Markup, html};
use vfio_fast_protocol::job::Mode;
use vfio_fast_protocol::record::Facts;

use crate::judge::Verdict;

/// A plot of one bar for each run.
pub struct Plot {
    pub title: &'static str,
    pub text: &'static str,
    pub picture: Markup,
}

const ROW: usize = 20;
const LABEL: usize = 330;
const WIDTH: usize = 480;

type Value = fn(&Facts) -> Option<f64>;

/// The plots of the scenarios that ran in several modes.
pub fn plots(verdicts: &[Verdict]) -> Vec<Plot> {
    let plots: [(&str, &str, Value); 2] = [
        (
            "Bytes mapped for each byte that is mapped in the end",
            "Of all boots, resets and plugs of a run; 1 is the minimum. Each scenario has a scale of its own.",
            |facts| ratio(facts.map_bytes, facts.wanted_bytes),
        ),
        ("Map and unmap calls", "Of the kernel, in a run. Each scenario has a scale of its own.", |facts| {
            Some((facts.map_calls + facts.unmap_calls) as f64).filter(|calls| *calls > 0.0)
        }),
    ];
    let plot = |(title, text, value): (&'static str, &'static str, Value)| {
        let rows = rows(verdicts, value);
        (!rows.is_empty()).then(|| Plot { title, text, picture: bars(title, &rows) })
    };
    plots.into_iter().filter_map(plot).collect()
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

/// The runs of scenarios with more than one mode, in order.
fn rows(verdicts: &[Verdict], value: Value) -> Vec<(String, Mode, f64)> {
    let known = |verdict: &Verdict| value(verdict.facts.as_ref()?);
    let is_compared = |verdict: &&Verdict| {
        verdicts.iter().filter(|other| other.name == verdict.name && known(other).is_some()).count() > 1
    };
    let compared = verdicts.iter().filter(is_compared);
    compared.filter_map(|verdict| Some((verdict.name.clone(), verdict.mode, known(verdict)?))).collect()
}

fn bars(title: &str, rows: &[(String, Mode, f64)]) -> Markup {
    let maximum = |scenario: &str| {
        let own = rows.iter().filter(|(name, ..)| name == scenario);
        own.fold(f64::MIN_POSITIVE, |maximum, (_, _, value)| maximum.max(*value))
    };
    let height = rows.len() * ROW + 4;
    html! {
        svg width=(LABEL + WIDTH + 80) height=(height) role="img" aria-label=(title) {
            line x1=(LABEL) y1="0" x2=(LABEL) y2=(height) {}
            @for (n, (name, mode, value)) in rows.iter().enumerate() {
                @let y = n * ROW;
                @let long = (value / maximum(name) * WIDTH as f64).max(1.0);
                text x="0" y=(y + 15) { (name) " " (mode.name()) }
                rect class=(mode.name()) x=(LABEL) y=(y + 4) width=(format!("{long:.1}")) height=(ROW - 6) {}
                text x=(format!("{:.1}", LABEL as f64 + long + 6.0)) y=(y + 15) { (number(*value)) }
            }
        }
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_of_each_scenario_is_as_wide_as_the_plot() {
        let row = |name: &str, mode, value| (name.to_owned(), mode, value);
        let rows = [
            row("a", Mode::Stock, 4.0),
            row("a", Mode::Fast, 1.0),
            row("b", Mode::Stock, 4000.0),
            row("b", Mode::Fast, 2000.0),
        ];
        let svg = bars("", &rows).into_string();
        let widths: Vec<&str> = svg
            .split("<rect")
            .skip(1)
            .filter_map(|bar| bar.split_once(" width=\"")?.1.split('"').next())
            .collect();
        assert_eq!(widths, ["480.0", "120.0", "480.0", "240.0"], "{svg}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([number(1.0), number(5.668), number(95.0)], ["1", "5.67", "95"]);
        assert_eq!((ratio(3, 2), ratio(3, 0)), (Some(1.5), None));
    }
}
