//! The results as bars: the median of each contestant, with a line to its p99.
//!
//! SVG leaves the letters to whoever shows it; PNG draws them from a bitmap font
//! that is part of the program.

mod bitmap;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::{Color, IntoFont, RGBColor, TextStyle};

use super::figures::{Row, Section, digits};
use super::report::Head;
use bitmap::WithLetters;

const WIDTH: u32 = 1060;
const LEFT: i32 = 390;
const RIGHT: i32 = 130;
const MARGIN: i32 = 20;
const BAR: i32 = 16;
const LINE: i32 = 22;
const INK: RGBColor = RGBColor(40, 40, 40);
/// Okabe and Ito's colours, which the colour-blind can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
];

/// Writes `bench.svg` and `bench.png` into a folder; answers their paths.
///
/// # Errors
/// The folder or a file cannot be written.
pub fn write(dir: &Path, head: &Head, sections: &[Section]) -> anyhow::Result<[PathBuf; 2]> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let size = (WIDTH, height(head, sections)?);
    let svg = dir.join("bench.svg");
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area, head, sections)?;
    }
    std::fs::write(&svg, text).with_context(|| format!("write {}", svg.display()))?;
    let png = dir.join("bench.png");
    let mut pixels = vec![0; usize::try_from(size.0 * size.1 * 3)?];
    {
        let backend = BitMapBackend::with_buffer(&mut pixels, size);
        draw(&WithLetters(backend).into_drawing_area(), head, sections)?;
    }
    bitmap::write_png(&png, &pixels, size)?;
    Ok([svg, png])
}

fn height(head: &Head, sections: &[Section]) -> anyhow::Result<u32> {
    let bars = i32::try_from(head.contestants.len())? * BAR + 8;
    let rows = sections.iter().flat_map(|one| &one.rows);
    let rows = rows.filter(|row| row.drawn).count();
    let fixed = 2 * MARGIN + LINE * (2 + i32::try_from(head.contestants.len())?);
    let sections = i32::try_from(sections.len())? * (2 * LINE);
    let all = fixed + sections + i32::try_from(rows)? * bars;
    Ok(u32::try_from(all)?)
}

/// Draws on any kind of paper.
struct Pen<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    y: i32,
}

impl<B: DrawingBackend> Pen<'_, B> {
    fn text(&self, text: &str, at: (i32, i32), size: i32) -> anyhow::Result<()> {
        let style = TextStyle::from(("sans-serif", size).into_font()).color(&INK);
        let text = Text::new(text.to_owned(), at, style);
        self.area.draw(&text).map_err(|error| failed(&error))
    }

    fn bar(&self, corners: [(i32, i32); 2], colour: RGBColor) -> anyhow::Result<()> {
        let bar = Rectangle::new(corners, colour.filled());
        self.area.draw(&bar).map_err(|error| failed(&error))
    }

    fn line(&self, ends: [(i32, i32); 2], colour: RGBColor) -> anyhow::Result<()> {
        let line = PathElement::new(ends.to_vec(), colour.stroke_width(2));
        self.area.draw(&line).map_err(|error| failed(&error))
    }

    fn row(&mut self, row: &Row) -> anyhow::Result<()> {
        let name = match row.unit.word() {
            "" => row.name.clone(),
            word => format!("{}, {word}", row.name),
        };
        self.text(&name, (MARGIN, self.y), 14)?;
        let longest = row.samples.iter().filter_map(|one| one.percentile(99));
        let longest = longest.fold(f64::MIN_POSITIVE, f64::max);
        let room = i32::try_from(WIDTH)? - LEFT - RIGHT;
        for (at, samples) in row.samples.iter().enumerate() {
            if let (Some(p50), Some(p99)) = (samples.percentile(50), samples.percentile(99)) {
                let colour = COLOURS[at % COLOURS.len()];
                let (top, bottom) = (self.y, self.y + BAR - 3);
                let end = LEFT + length(p50, longest, room).max(1);
                self.bar([(LEFT, top), (end, bottom)], colour)?;
                let tip = LEFT + length(p99, longest, room);
                let middle = self.y + BAR / 2 - 2;
                self.line([(end, middle), (tip, middle)], colour)?;
                self.text(&digits(p50), (tip.max(end) + 6, self.y), 14)?;
            }
            self.y += BAR;
        }
        self.y += 8;
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a share of `room`, which is an i32"
)]
fn length(value: f64, longest: f64, room: i32) -> i32 {
    (value.max(0.0) / longest * f64::from(room)).round() as i32
}

fn failed(error: &dyn std::error::Error) -> anyhow::Error {
    anyhow!("draw the plot: {error}")
}

fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    head: &Head,
    sections: &[Section],
) -> anyhow::Result<()> {
    let white = RGBColor(255, 255, 255);
    area.fill(&white).map_err(|error| failed(&error))?;
    let mut pen = Pen { area, y: MARGIN };
    let machine: String = head.machine.chars().take(125).collect();
    pen.text(&machine, (MARGIN, pen.y), 14)?;
    pen.y += LINE;
    let note = "bar: median; line: to the 99th percentile; every row has a scale of its own";
    pen.text(note, (MARGIN, pen.y), 14)?;
    pen.y += LINE;
    for (at, name) in head.contestants.iter().enumerate() {
        let corners = [(MARGIN, pen.y), (MARGIN + 24, pen.y + BAR - 3)];
        pen.bar(corners, COLOURS[at % COLOURS.len()])?;
        pen.text(name, (MARGIN + 32, pen.y), 14)?;
        pen.y += LINE;
    }
    for section in sections {
        pen.y += LINE / 2;
        pen.text(&section.mode.to_uppercase(), (MARGIN, pen.y), 16)?;
        pen.y += LINE + LINE / 2;
        for row in section.rows.iter().filter(|row| row.drawn) {
            pen.row(row)?;
        }
    }
    area.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{Samples, Unit};

    #[test]
    fn both_files_are_drawn_and_the_png_has_letters() {
        let samples = vec![Samples(vec![1.0, 2.0]), Samples(vec![10.0, 30.0])];
        let sections = [Section {
            mode: "latency",
            what: String::new(),
            rows: vec![Row::new("RunPodSandbox", Unit::Milliseconds, samples)],
        }];
        let head = Head {
            machine: "a machine".into(),
            command: "bench".into(),
            at: 0,
            contestants: vec!["one".into(), "two".into()],
        };
        let dir = tempfile::tempdir().expect("a folder");
        let [svg, png] = write(dir.path(), &head, &sections).expect("drawn");
        let svg = std::fs::read_to_string(svg).expect("written");
        assert!(svg.contains("RunPodSandbox") && svg.contains("</svg>"));
        let file = std::io::BufReader::new(std::fs::File::open(png).expect("written"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("a picture");
        assert_eq!((info.width, info.color_type), (WIDTH, png::ColorType::Rgb));
        let dark = |pixel: &&[u8]| pixel.iter().all(|part| *part < 60);
        assert!(pixels.chunks(3).filter(dark).count() > 100, "no letters");
    }
}
