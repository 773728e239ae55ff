//! vfio_fast(3), from the comments and declarations of the C header.

use anyhow::{Context, Result, ensure};
use clap_mangen::roff::{Roff, bold, roman};

use super::comment;

/// A declaration with the comment before it.
#[derive(Debug, PartialEq, Eq)]
struct Declared {
    comment: Vec<String>,
    code: Vec<String>,
}

impl Declared {
    fn is_function(&self) -> bool {
        self.code[0].contains('(') && !self.code[0].starts_with("typedef") && !self.is_constant()
    }

    fn is_constant(&self) -> bool {
        self.code[0].starts_with("#define")
    }

    /// The name of a function, of a constant, or of a type.
    fn name(&self) -> Option<&str> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut words = self.code[0].split(|c| !is_name(c));
        words.find(|word| word.starts_with("vfio_fast") || word.starts_with("VFIO_FAST"))
    }
}

/// The page.
pub fn page(header: &str, others: &[&str]) -> Result<String> {
    let (introduction, declared) = parse(header)?;
    let mut page = Roff::new();
    let version = format!("vfio-fast {}", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["vfio_fast", "3", "", version.as_str()]);
    page.control("SH", ["NAME"]);
    let (first, rest) = introduction.split_first().context("the header begins with what it is")?;
    let short = first.split_once(": ").context("libvfio_fast: what it is")?.1.trim_end_matches('.');
    page.text([roman(format!("vfio_fast - {short}"))]);
    page.control("SH", ["SYNOPSIS"]);
    comment::code(&mut page, &["#include <vfio_fast.h>".to_owned()]);
    for function in declared.iter().filter(|item| item.is_function()) {
        comment::code(&mut page, &function.code);
    }
    page.control("SH", ["DESCRIPTION"]);
    sections(&mut page, rest);
    page.control("SH", ["FUNCTIONS"]);
    for function in declared.iter().filter(|item| item.is_function()) {
        page.control("SS", [function.name().context("a function has a name")?]);
        comment::code(&mut page, &function.code);
        headings(&mut page, &function.comment);
    }
    page.control("SH", ["TYPES"]);
    for item in declared.iter().filter(|item| !item.is_function() && !item.is_constant()) {
        of_type(&mut page, item)?;
    }
    page.control("SH", ["CONSTANTS"]);
    for item in declared.iter().filter(|item| item.is_constant()) {
        let value = item.code[0].split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        let name = item.name().context("a constant has a name")?;
        page.control("TP", []);
        page.text([bold(name), roman(" "), roman(value)]);
        page.text([roman(item.comment.join("\n"))]);
    }
    comment::see_also(&mut page, others);
    Ok(comment::tidy(&page.render()))
}

/// A type: its comment, and each field as a term.
fn of_type(page: &mut Roff, item: &Declared) -> Result<()> {
    page.control("SS", [item.name().context("a type has a name")?]);
    let fields = fields(&item.code);
    if fields.is_empty() {
        comment::code(page, &item.code);
    }
    headings(page, &item.comment);
    for field in fields {
        page.control("TP", []);
        page.text([bold(field.code.join(" "))]);
        page.text([roman(field.comment.join("\n"))]);
    }
    Ok(())
}

/// A line in capitals begins a section.
fn sections(page: &mut Roff, lines: &[String]) {
    let mut body = Vec::new();
    for line in lines {
        if !line.is_empty() && line.chars().all(|c| c.is_ascii_uppercase()) {
            comment::paragraphs(page, &std::mem::take(&mut body));
            page.control("SH", [line.as_str()]);
        } else {
            body.push(line.clone());
        }
    }
    comment::paragraphs(page, &body);
}

/// A heading of a comment (`# Returns`) stands alone and bold.
fn headings(page: &mut Roff, lines: &[String]) {
    let mut body = Vec::new();
    for line in lines {
        if let Some(title) = line.strip_prefix("# ") {
            comment::paragraphs(page, &std::mem::take(&mut body));
            page.control("PP", []);
            page.text([bold(title)]);
        } else {
            body.push(line.clone());
        }
    }
    comment::paragraphs(page, &body);
}

/// The introduction, and all that is declared.
fn parse(header: &str) -> Result<(Vec<String>, Vec<Declared>)> {
    let lines: Vec<&str> = header.lines().collect();
    let start = lines.iter().position(|line| *line == "/*").context("no introduction")?;
    let end = lines.iter().position(|line| *line == " */").context("no end of the introduction")?;
    let introduction = lines[start + 1..end].iter().map(|line| uncomment(line)).collect();
    let declared = declarations(&lines[end + 1..]);
    ensure!(declared.iter().any(Declared::is_function), "the header declares no function");
    Ok((introduction, declared))
}

/// What follows a comment up to an empty line, outside of comments and braces.
fn declarations(lines: &[&str]) -> Vec<Declared> {
    let mut found: Vec<Declared> = Vec::new();
    let mut lines = lines.iter();
    while let Some(line) = lines.next() {
        if line.trim() != "/**" {
            continue;
        }
        let comment =
            lines.by_ref().map_while(|line| (line.trim() != "*/").then(|| uncomment(line))).collect();
        let first = lines.next().copied().unwrap_or_default();
        let mut code = vec![first.to_owned()];
        if first.ends_with('{') {
            code.extend(lines.by_ref().map_while(|line| (*line != "};").then(|| (*line).to_owned())));
        } else if !first.starts_with("#define") && !first.ends_with(';') {
            for line in lines.by_ref() {
                code.push((*line).to_owned());
                if line.ends_with(';') {
                    break;
                }
            }
        }
        found.push(Declared { comment, code });
    }
    found
}

/// The fields of a struct.
fn fields(code: &[String]) -> Vec<Declared> {
    let lines: Vec<&str> = code.iter().skip(1).map(|line| line.trim()).collect();
    declarations(&lines)
}

/// The text of a line of a comment.
fn uncomment(line: &str) -> String {
    let text = line.trim_start().strip_prefix('*').unwrap_or_default();
    text.strip_prefix(' ').unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "/* licence */\n/*\n * libx: What it is.\n *\n * It does.\n *\n * TERMS\n *\n * A term.\n */\n\
        /**\n * A number.\n */\n#define VFIO_FAST_A (1u << 0)\n\n\
        /**\n * A struct.\n */\nstruct vfio_fast_s {\n    /**\n     * Its size.\n     */\n    uint32_t size;\n};\n\n\
        /**\n * Opens.\n *\n * - a: a thing\n *\n * # Returns\n * 0\n */\nint vfio_fast_open(int a,\n    int b);\n";

    #[test]
    fn everything_that_is_declared_is_in_the_page() {
        let page = page(HEADER, &[]).unwrap();
        for text in [
            "vfio_fast \\- What it is\n",
            ".SH TERMS\n.PP\nA term.",
            ".SS vfio_fast_open\n.PP\n.EX\nint vfio_fast_open(int a,\n    int b);\n.EE\n.PP\nOpens.\n.IP \\(bu 2\na: a thing",
            ".PP\n\\fBReturns\\fR\n.PP\n0\n",
            ".SS vfio_fast_s\n.PP\nA struct.\n.TP\n\\fBuint32_t size;\\fR\nIts size.",
            "\\fBVFIO_FAST_A\\fR (1u << 0)\nA number.",
        ] {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
    }

    #[test]
    fn a_header_without_functions_is_refused() {
        assert!(page("/*\n * libx: What.\n */\n", &[]).is_err());
    }
}
