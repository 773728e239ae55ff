//! Renders a run as a self-contained HTML page, and as Markdown for docs/PERFORMANCE.md.

use std::fmt::Write as _;

use super::plot::escape;
use super::table::Section;

const STYLE: &str = "body{font:15px/1.45 'DejaVu Sans',Helvetica,Arial,sans-serif;color:#222;max-width:1240px;margin:2em auto;\
padding:0 1em}svg{max-width:100%;height:auto}table{border-collapse:collapse;font-size:13px;\
font-variant-numeric:tabular-nums}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}\
.wide{overflow-x:auto}";

pub fn html(sections: &[Section], figure: &str) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    let _ = write!(
        page,
        "<title>vfio-fast: speed</title><style>{STYLE}</style></head>\n<body><h1>vfio-fast: speed</h1>\n{figure}"
    );
    for section in sections {
        let _ = writeln!(page, "<h2>{}</h2>", escape(section.title));
        for line in &section.about {
            let _ = writeln!(page, "<p>{}</p>", escape(line));
        }
        for (title, table) in &section.tables {
            let head: String = table.head.iter().map(|cell| format!("<th>{}</th>", escape(cell))).collect();
            let _ = write!(page, "<h3>{}</h3>\n<div class=\"wide\"><table><tr>{head}</tr>\n", escape(title));
            for row in &table.rows {
                let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
                let _ = writeln!(page, "<tr>{cells}</tr>");
            }
            let _ = writeln!(page, "</table></div>");
        }
    }
    page + "</body></html>\n"
}

/// The part that docs/PERFORMANCE.md quotes.
pub fn markdown(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let _ = writeln!(text, "## {}\n", section.title);
        for line in &section.about {
            let _ = writeln!(text, "- {line}");
        }
        for (title, table) in &section.tables {
            let _ = writeln!(text, "\n### {title}\n\n| {} |", table.head.join(" | "));
            let _ = writeln!(text, "|{}", "---|".repeat(table.head.len()));
            for row in &table.rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}
