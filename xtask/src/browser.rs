//! Opens the page of the newest run of e2e in a browser without a display: it must load without a message of the browser,
//! and be drawn in light and in dark colours.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vfio_fast_assets::cache::Cache;
use vfio_fast_assets::outcome::CannotRun;
use vfio_fast_assets::progress::run_logged;
use vfio_fast_assets::{packages, paths};

const BROWSER: &str = "chromium";
/// The browser's names of the colour schemes.
const SCHEMES: [(&str, &str); 2] = [("light", "1"), ("dark", "0")];
/// What the browser's log has in each line about a page: what it finds wrong, and what scripts print.
const MESSAGE: &str = ":CONSOLE";

pub fn check(log: &Path) -> Result<()> {
    packages::ensure_also(&Cache::open()?, &[BROWSER])?;
    let page = paths::target().join("e2e/latest/report.html");
    if !page.is_file() {
        return Err(CannotRun("there is no report: run `cargo xtask e2e` first".into()).into());
    }
    let folder = paths::target().join("test/browser");
    fs::create_dir_all(&folder)?;
    let pictures = SCHEMES.map(|(name, scheme)| (folder.join(format!("report-{name}.png")), scheme));
    for (picture, scheme) in &pictures {
        let mut command = Command::new(BROWSER);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.args(["--window-size=1300,3000", "--enable-logging=stderr"]);
        command.arg(format!("--blink-settings=preferredColorScheme={scheme}"));
        command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
        command.arg(format!("--screenshot={}", picture.display())).arg(format!("file://{}", page.display()));
        run_logged(&mut command, log)?;
    }
    let told = fs::read_to_string(log)?;
    let about: Vec<&str> = told.lines().filter(|line| line.contains(MESSAGE)).collect();
    ensure!(about.is_empty(), "the browser says of {}:\n{}", page.display(), about.join("\n"));
    let [light, dark] =
        pictures.map(|(picture, _)| fs::read(&picture).context(picture.display().to_string()));
    ensure!(light? != dark?, "the page has the same colours in light and dark");
    println!("    screenshots: {}", folder.display());
    Ok(())
}
