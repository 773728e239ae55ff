//! Text as it stands in comments, as paragraphs, lists, tables and code of a man page.

use clap_mangen::roff::{Roff, bold, roman};

/// A block of text.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    Paragraph(String),
    /// An item of a list.
    Item(String),
    /// A term and what it means.
    Term(String, String),
    Code(Vec<String>),
}

/// Appends the text to a page.
pub fn paragraphs(page: &mut Roff, lines: &[String]) {
    for block in blocks(lines) {
        match block {
            Block::Paragraph(text) => {
                page.control("PP", []);
                page.text([roman(text)]);
            }
            Block::Item(text) => {
                page.control("IP", ["\\(bu", "2"]);
                page.text([roman(text)]);
            }
            Block::Term(term, text) => {
                page.control("TP", []);
                page.text([roman(term)]);
                page.text([roman(text)]);
            }
            Block::Code(lines) => code(page, &lines),
        }
    }
}

/// Appends lines that are shown as they are.
pub fn code(page: &mut Roff, lines: &[String]) {
    page.control("PP", []);
    page.control("EX", []);
    for line in lines {
        page.text([roman(line.clone())]);
    }
    page.control("EE", []);
}

/// Appends the section that names other pages, each as name(section).
pub fn see_also(page: &mut Roff, others: &[&str]) {
    page.control("SH", ["SEE ALSO"]);
    let mut words = Vec::new();
    for (n, (name, section)) in others.iter().filter_map(|other| other.split_once('(')).enumerate() {
        words.push(roman(if n == 0 { "" } else { ", " }));
        words.push(bold(name));
        words.push(roman(format!("({section}")));
    }
    page.text(words);
}

/// A file as the repository has it: no white space at the end of a line, one newline at the end.
pub fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_end().to_owned() + "\n"
}

/// Joins lines to blocks. Four columns more than prose are code; two with a gap after the first word are a table.
fn blocks(lines: &[String]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for line in lines {
        let inner = line.trim_start();
        let indent = line.len() - inner.len();
        let in_code = open && matches!(blocks.last(), Some(Block::Code(_)));
        if inner.is_empty() {
            open = false;
        } else if in_code || (!open && indent >= 4) {
            match blocks.last_mut().filter(|_| in_code) {
                Some(Block::Code(lines)) => lines.push(line.clone()),
                _ => blocks.push(Block::Code(vec![line.clone()])),
            }
            open = true;
        } else if let Some(text) = inner.strip_prefix("- ") {
            blocks.push(Block::Item(text.to_owned()));
            open = true;
        } else if let Some((term, text)) = inner.split_once("  ").filter(|_| indent == 2) {
            blocks.push(Block::Term(term.to_owned(), text.trim_start().to_owned()));
            open = true;
        } else {
            let goes_on = open && (indent > 0 || matches!(blocks.last(), Some(Block::Paragraph(_))));
            match blocks.last_mut().filter(|_| goes_on) {
                Some(Block::Paragraph(text) | Block::Item(text) | Block::Term(_, text)) => {
                    *text = format!("{text}\n{inner}");
                }
                _ => blocks.push(Block::Paragraph(inner.to_owned())),
            }
            open = true;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Block> {
        blocks(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn blocks_are_recognized() {
        let paragraph = |text: &str| Block::Paragraph(text.to_owned());
        let item = |text: &str| Block::Item(text.to_owned());
        let term = |term: &str, text: &str| Block::Term(term.to_owned(), text.to_owned());
        assert_eq!(of("a\nb\n\nc"), [paragraph("a\nb"), paragraph("c")]);
        assert_eq!(of("a:\n- b\n  c\n- d\ne"), [paragraph("a:"), item("b\nc"), item("d"), paragraph("e")]);
        assert_eq!(of("a\n  - b\n    c\n"), [paragraph("a"), item("b\nc")]);
        assert_eq!(of("  EIO    a\n         b\n  E2  c"), [term("EIO", "a\nb"), term("E2", "c")]);
        let code = Block::Code(vec!["    x {".into(), "        y".into(), "    }".into()]);
        assert_eq!(of("a\n\n    x {\n        y\n    }\n\nb"), [paragraph("a"), code, paragraph("b")]);
    }
}
