//! The man page and the shell completions of a program, from its command line.

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;

use super::comment;

/// The shells, and the name under which each finds its completions.
pub const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "NAME.bash"), (Shell::Fish, "NAME.fish"), (Shell::Zsh, "_NAME")];

/// The man page. What `--help` prints after the options becomes sections.
pub fn page(command: &Command, others: &[&str]) -> Result<String> {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // The parser of the command line removes the last full stop.
    let about = command.get_about().context("the program says what it does")?.to_string() + ".";
    let man = Man::new(command.clone().about(in_a_list(&about)).bin_name(command.get_name()));
    let (prose, sections) = sections(&after);
    let mut description = Roff::new();
    description.control("SH", ["DESCRIPTION"]);
    comment::paragraphs(&mut description, &[about]);
    comment::paragraphs(&mut description, &prose);
    let mut rest = Roff::new();
    for (title, body) in sections {
        rest.control("SH", [title.to_uppercase().as_str()]);
        comment::paragraphs(&mut rest, &body);
    }
    comment::see_also(&mut rest, others);
    let mut bytes = Vec::new();
    man.render_title(&mut bytes)?;
    man.render_name_section(&mut bytes)?;
    man.render_synopsis_section(&mut bytes)?;
    description.to_writer(&mut bytes)?;
    man.render_options_section(&mut bytes)?;
    rest.to_writer(&mut bytes)?;
    Ok(comment::tidy(&String::from_utf8(bytes)?))
}

/// The text as lists of man pages show it: up to the first comma, in lower case.
fn in_a_list(about: &str) -> String {
    let (short, _) = about.split_once(['.', ',']).unwrap_or((about, ""));
    let mut letters = short.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// The completions for a shell.
pub fn completion(command: &Command, shell: Shell) -> Result<String> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut command.clone(), command.get_name().to_owned(), &mut bytes);
    Ok(comment::tidy(&String::from_utf8(bytes)?))
}

/// Splits a text at the lines `Title:`. Returns what stands before the first of them or after the sections, and the
/// sections.
fn sections(text: &str) -> (Vec<String>, Vec<(String, Vec<String>)>) {
    let mut prose = Vec::new();
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            Some(title) => {
                inside = true;
                sections.push((title.to_owned(), Vec::new()));
            }
            None => {
                // A section ends with its paragraph.
                inside &= !line.is_empty();
                match sections.last_mut().filter(|_| inside) {
                    Some((_, body)) => body.push(line.to_owned()),
                    None => prose.push(line.to_owned()),
                }
            }
        }
    }
    (prose, sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_help_says() {
        let command =
            Command::new("x").about("Does x, and y").after_help("It does.\n\nExit codes:\n  0  done");
        let page = page(&command, &["vfio_fast(3)"]).unwrap();
        for text in [
            "x \\- does x\n",
            ".SH DESCRIPTION\n.PP\nDoes x, and y.\n.PP\nIt does.\n",
            ".SH \"EXIT CODES\"\n.TP\n0\ndone\n",
            ".SH \"SEE ALSO\"\n\\fBvfio_fast\\fR(3)\n",
        ] {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
    }

    #[test]
    fn titles_make_sections() {
        let (prose, sections) = sections("About.\n\nExit codes:\n  0  fine\n\nMore.");
        assert_eq!(prose, ["About.", "", "", "More."]);
        assert_eq!(sections, [("Exit codes".to_owned(), vec!["  0  fine".to_owned()])]);
    }
}
