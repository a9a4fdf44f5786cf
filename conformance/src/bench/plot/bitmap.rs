//! Letters for the pictures made of pixels, and their file.

use std::path::Path;

use anyhow::Context;
use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind,
};
use spleen_font::FONT_8X16;

/// Width and height of every letter.
const GLYPH: (u32, u32) = (8, 16);
/// What stands before the first letter in a font of this format, PSF1. The crate's
/// own reader takes the third byte for the height, which is the fourth.
const HEADER: usize = 4;

/// The rows of an ASCII letter, one bit a pixel; of anything else, a question mark.
fn rows(letter: char) -> &'static [u8] {
    let code = if letter.is_ascii() { letter } else { '?' };
    let start = HEADER + usize::from(u8::try_from(code).unwrap_or(b'?')) * 16;
    FONT_8X16.get(start..start + 16).unwrap_or_default()
}

type Error<'a> = <BitMapBackend<'a> as DrawingBackend>::ErrorType;
type Drawn<'a> = Result<(), DrawingErrorKind<Error<'a>>>;

/// A bitmap that can be written on: plotters' own needs fonts of the system or
/// a font file.
pub(super) struct WithLetters<'a>(pub(super) BitMapBackend<'a>);

impl<'a> DrawingBackend for WithLetters<'a> {
    type ErrorType = Error<'a>;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.0.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Drawn<'a> {
        self.0.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.0.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (left, top): BackendCoord,
    ) -> Drawn<'a> {
        let mut left = left;
        for letter in text.chars() {
            for (y, row) in (top..).zip(rows(letter)) {
                for (x, bit) in (left..).zip((0..8).rev()) {
                    if row >> bit & 1 == 1 {
                        self.0.draw_pixel((x, y), style.color())?;
                    }
                }
            }
            left += 8;
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let letters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX / GLYPH.0);
        Ok((letters * GLYPH.0, GLYPH.1))
    }
}

/// Writes pixels of three bytes each.
pub(super) fn write_png(path: &Path, pixels: &[u8], size: (u32, u32)) -> anyhow::Result<()> {
    let named = || format!("write {}", path.display());
    let file = std::fs::File::create(path).with_context(named)?;
    let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().with_context(named)?;
    writer.write_image_data(pixels).with_context(named)?;
    writer.finish().with_context(named)
}
