//! Draws charts with axes as SVG, and converts them to PNG.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

const FONT: &str = "DejaVu Sans, Helvetica, Arial, sans-serif";
const INK: &str = "#222222";
const FAINT: &str = "#dddddd";
/// PNG pixels per unit of the drawing.
const SCALE: f32 = 1.5;

/// The point of a text that its position refers to.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG drawing under construction.
#[derive(Debug, Default)]
pub struct Canvas(String);

impl Canvas {
    /// Draws text with its base line at `y`.
    pub fn text(&mut self, x: f64, y: f64, size: u32, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{INK}\">{text}</text>"
        );
    }

    pub fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        );
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, colour: &str, dashed: bool) {
        let dashes = if dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        let _ = writeln!(
            self.0,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"{dashes}/>",
            from.0, from.1, to.0, to.1
        );
    }

    pub fn dot(&mut self, at: (f64, f64), colour: &str) {
        let _ = writeln!(self.0, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", at.0, at.1);
    }

    /// Returns the finished drawing of `width` by `height` on a white background.
    pub fn finish(self, width: f64, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"{FONT}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.0
        )
    }
}

/// The plotting area of a chart, with a vertical scale that starts at 0.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// The left edge.
    pub x: f64,
    /// The upper edge.
    pub y: f64,
    pub width: f64,
    pub height: f64,
    /// The value at the upper edge.
    most: f64,
}

impl Area {
    /// Draws title, legend and axis for values from 0 to at least `most`, and returns the area to plot in.
    pub fn new(
        canvas: &mut Canvas,
        (x, y, width, height): (f64, f64, f64, f64),
        (title, unit): (&str, &str),
        legend: &[(&str, &str)],
        most: f64,
    ) -> Self {
        canvas.text(x, y, 16, Anchor::Start, title);
        let mut at = x;
        for (name, colour) in legend {
            canvas.bar(at, y + 14.0, 12.0, 12.0, colour);
            canvas.text(at + 17.0, y + 24.0, 12, Anchor::Start, name);
            at += 34.0 + 7.2 * name.chars().count() as f64;
        }
        let step = round_step(most / 5.0);
        let steps = (most / step).ceil().max(1.0);
        let area = Self {
            x: x + 48.0,
            y: y + 64.0,
            width: width - 48.0,
            height: height - 118.0,
            most: step * steps,
        };
        canvas.text(x, y + 46.0, 12, Anchor::Start, unit);
        for number in 0..=steps as u32 {
            let value = step * f64::from(number);
            let level = area.level(value);
            canvas.line((area.x, level), (area.x + area.width, level), 1.0, FAINT, false);
            let digits = if step < 0.1 { 2 } else { usize::from(step < 1.0) };
            canvas.text(area.x - 6.0, level + 4.0, 12, Anchor::End, &format!("{value:.digits$}"));
        }
        area
    }

    /// The vertical position of a value; values above the scale are clamped to the upper edge.
    pub fn level(&self, value: f64) -> f64 {
        self.y + self.height * (1.0 - value.min(self.most) / self.most)
    }

    /// The vertical position of 0.
    pub fn floor(&self) -> f64 {
        self.y + self.height
    }

    /// Draws a bar from 0 to the median, with a whisker between the other two values.
    pub fn bar(&self, canvas: &mut Canvas, x: f64, width: f64, value: (f64, f64, f64), colour: &str) {
        let (value, from, to) = value;
        canvas.bar(x, self.level(value), width, self.floor() - self.level(value), colour);
        let middle = x + width / 2.0;
        canvas.line((middle, self.level(from)), (middle, self.level(to)), 1.5, INK, false);
    }
}

/// The smallest number of the form 1, 2 or 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    if least.is_nan() || least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// Escapes text for XML and HTML, attributes included.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Renders a drawing as PNG. Without fonts the image has no text; a message says so.
pub fn write_png(svg: &str, path: &Path) -> Result<()> {
    let mut options = Options::default();
    options.fontdb_mut().load_system_fonts();
    if options.fontdb.is_empty() {
        eprintln!("    no fonts on this machine: {} has no words; the HTML page has them", path.display());
    }
    let tree = Tree::from_str(svg, &options).context("The drawing is no SVG")?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("The drawing has no size")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("The drawing has no size")?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.save_png(path).with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (least, step) in [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (4.9, 5.0), (6.0, 10.0), (0.0, 1.0)] {
            assert!((round_step(least) - step).abs() < 1e-9, "{least}: {}", round_step(least));
        }
    }

    #[test]
    fn a_drawing_becomes_pixels_of_its_colours() {
        let mut canvas = Canvas::default();
        canvas.bar(0.0, 0.0, 20.0, 20.0, "#ff0000");
        let path =
            vfio_fast_assets::paths::target().join(format!("test-scratch/plot-{}.png", std::process::id()));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_png(&canvas.finish(40.0, 20.0), &path).unwrap();
        let pixels = Pixmap::load_png(&path).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (60, 30));
        let colour = |x| pixels.pixel(x, 15).unwrap().demultiply();
        assert_eq!((colour(5).red(), colour(5).green()), (255, 0));
        assert_eq!((colour(55).red(), colour(55).green()), (255, 255));
        std::fs::remove_file(path).unwrap();
    }
}
