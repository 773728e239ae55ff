//! The longest commit of a run, as the library has recorded it: which thread did what when.

use std::collections::BTreeMap;
use std::fs;

use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use crate::judge::Verdict;

/// The log with the record.
const LOG: &str = "timeline.log";
const ROW: usize = 26;
const LABEL: usize = 110;
const WIDTH: usize = 900;
/// The spans that are drawn, the longer ones first, because they contain others; and their classes in the style.
const KINDS: [(&str, &str); 6] = [
    ("plan", "plan"),
    ("fault in", "fault"),
    ("wait for memory", "wait"),
    ("map", "map"),
    ("unmap", "unmap"),
    ("roll back", "back"),
];

/// The colours of the picture.
pub const STYLE: &str = include_str!("timeline.css");

/// A picture of a commit.
pub struct Timeline {
    pub title: String,
    pub text: String,
    pub picture: Markup,
}

impl Timeline {
    /// The picture as a file of its own, which does not depend on the style of a page.
    pub fn file(&self) -> String {
        let style = html! { style { (PreEscaped(STYLE)) } rect.paper width="100%" height="100%" {} };
        let picture = self.picture.0.replacen('>', &format!(">{}", style.into_string()), 1);
        picture.replacen("<svg", "<svg xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\"", 1)
            + "\n"
    }
}

struct Span {
    name: String,
    row: u64,
    start: f64,
    length: f64,
}

impl Span {
    fn end(&self) -> f64 {
        self.start + self.length
    }
}

/// The one of the first run that has any.
pub fn timeline(verdicts: &[Verdict]) -> Option<Timeline> {
    verdicts.iter().find_map(|verdict| {
        let text = fs::read_to_string(verdict.folder.join(LOG)).ok()?;
        let title = format!("The longest commit of {} {}", verdict.name, verdict.mode.name());
        draw(&text, title)
    })
}

/// `None` if there is no commit.
fn draw(text: &str, title: String) -> Option<Timeline> {
    let events: Vec<Value> = serde_json::from_str(text).ok()?;
    let mut rows = BTreeMap::new();
    let mut spans = Vec::new();
    for event in &events {
        let row = event["tid"].as_u64()?;
        let name = event["name"].as_str()?;
        if event["ph"] == "M" {
            rows.insert(row, event["args"]["name"].as_str()?);
        } else {
            let [start, length] = ["ts", "dur"].map(|member| event[member].as_f64());
            spans.push(Span { name: name.to_owned(), row, start: start?, length: length? });
        }
    }
    let is_commit = |span: &&Span| span.name == "commit";
    let commit = spans.iter().filter(is_commit).max_by(|a, b| a.length.total_cmp(&b.length))?;
    let inside = |span: &&Span| span.start >= commit.start && span.end() <= commit.end();
    let within: Vec<&Span> = spans.iter().filter(inside).collect();
    // The caller first: it has the largest number.
    rows.retain(|row, _| within.iter().any(|span| span.row == *row));
    let order: Vec<(u64, &str)> = rows.into_iter().rev().collect();
    let milliseconds = commit.length / 1000.0;
    let count = |kind: &str| within.iter().filter(|span| span.name == kind).count();
    let text = format!(
        "{milliseconds:.1} ms, {} chunks faulted in, {} map calls, {} unmap calls. All of it is in {LOG} of the run, \
         which Perfetto opens.",
        count("fault in"),
        count("map"),
        count("unmap")
    );
    Some(Timeline { picture: picture(&title, commit, &within, &order), title, text })
}

fn picture(title: &str, commit: &Span, within: &[&Span], order: &[(u64, &str)]) -> Markup {
    let scale = WIDTH as f64 / commit.length;
    let x = |time: f64| format!("{:.2}", LABEL as f64 + (time - commit.start) * scale);
    let legend = order.len() * ROW + 14;
    html! {
        svg.timeline width=(LABEL + WIDTH + 20) height=(legend + 26) role="img" aria-label=(title) {
            @for (n, (row, name)) in order.iter().enumerate() {
                text x="0" y=(n * ROW + 17) { (name) }
                rect.row x=(LABEL) y=(n * ROW + 2) width=(WIDTH) height=(ROW - 4) {}
                @for (kind, class) in KINDS {
                    @for span in within.iter().filter(|span| span.row == *row && span.name == kind) {
                        rect class=(class) x=(x(span.start)) y=(n * ROW + 4)
                            width=(format!("{:.2}", (span.length * scale).max(0.5))) height=(ROW - 8) {}
                    }
                }
            }
            @for (n, (kind, class)) in KINDS.iter().enumerate() {
                rect class=(class) x=(LABEL + n * 130) y=(legend) width="14" height="14" {}
                text x=(LABEL + n * 130 + 20) y=(legend + 12) { (kind) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, row: u64, start: f64, length: f64) -> String {
        format!(r#"{{"name":"{name}","ph":"X","ts":{start},"dur":{length},"pid":1,"tid":{row},"args":{{}}}}"#)
    }

    fn name(row: u64, name: &str) -> String {
        format!(r#"{{"name":"thread_name","ph":"M","pid":1,"tid":{row},"args":{{"name":"{name}"}}}}"#)
    }

    #[test]
    fn the_longest_commit_is_drawn_with_its_threads() {
        let events = [
            name(1000, "caller 1"),
            name(1, "vfio-fast-1"),
            name(2, "vfio-fast-2"),
            span("commit", 1000, 0.0, 10.0),
            span("map", 2, 1.0, 1.0),
            span("commit", 1000, 100.0, 1000.0),
            span("fault in", 1, 100.0, 500.0),
            span("map", 1000, 600.0, 250.0),
        ];
        let Timeline { text, picture, .. } =
            draw(&format!("[{}]", events.join(",")), "a".to_owned()).unwrap();
        assert!(text.starts_with("1.0 ms, 1 chunks faulted in, 1 map calls, 0 unmap calls"), "{text}");
        let file = Timeline { text, title: "a".to_owned(), picture: picture.clone() }.file();
        assert!(file.starts_with("<svg xmlns=") && file.ends_with("</svg>\n"), "{file}");
        assert!(file.contains("><style>:root") && file.contains("--ink: #1f2328"), "{file}");
        let svg = picture.into_string();
        assert!(svg.contains("vfio-fast-1") && !svg.contains("vfio-fast-2"), "{svg}");
        assert!(svg.find("caller 1") < svg.find("vfio-fast-1"));
        // Half the width from the beginning, and a quarter from the middle.
        assert!(svg.contains(r#"class="fault" x="110.00" y="30" width="450.00""#), "{svg}");
        assert!(svg.contains(r#"class="map" x="560.00" y="4" width="225.00""#), "{svg}");
    }

    #[test]
    fn nothing_is_drawn_of_what_is_no_record() {
        for text in ["", "[]", "{", &format!("[{}]", span("map", 1, 0.0, 1.0))] {
            assert!(draw(text, String::new()).is_none(), "{text}");
        }
    }
}
