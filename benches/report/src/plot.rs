//! A plot of one measure: a bar for each candidate, as long as its median, with a line from the minimum to
//! the 90th percentile.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Measure, number};

/// Pixels.
const WIDTH: u32 = 720;
const BAR: u32 = 34;
const AROUND: u32 = 90;
const NAMES: u32 = 190;

const GREY: RGBColor = RGBColor(176, 176, 176);
const BLUE: RGBColor = RGBColor(120, 170, 220);

/// Writes the plot as an SVG file.
pub fn draw(measure: &Measure, file: &Path) -> Result<()> {
    let count = measure.candidates.len();
    let most = measure.candidates.iter().map(|candidate| candidate.at(9)).fold(0.0, f64::max);
    let area = SVGBackend::new(file, (WIDTH, AROUND + BAR * count as u32)).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let better = if measure.less { "less" } else { "more" };
        let title =
            format!("{}, {} ({better} is better), {}", measure.name, measure.unit, measure.host);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(NAMES)
            // Room for a number behind the longest bar.
            .build_cartesian_2d(0.0..(most * 1.15).max(1e-9), (0..count - 1).into_segmented())?;
        let name = |place: &SegmentValue<usize>| match place {
            SegmentValue::CenterOf(index) => {
                measure.candidates.iter().rev().nth(*index).map_or("", |c| &c.name)
            }
            _ => "",
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_labels(count)
            .y_label_formatter(&|place| name(place).to_owned())
            .label_style(("sans-serif", 13))
            .draw()?;
        let beside = Pos::new(HPos::Left, VPos::Center);
        for (index, candidate) in measure.candidates.iter().rev().enumerate() {
            let bottom = SegmentValue::Exact(index);
            let top = match index + 1 == count {
                true => SegmentValue::Last,
                false => SegmentValue::Exact(index + 1),
            };
            let middle = SegmentValue::CenterOf(index);
            // What the others are compared with is grey.
            let color = if index + 1 == count { GREY } else { BLUE };
            let mut bar = Rectangle::new([(0.0, bottom), (candidate.at(5), top)], color.filled());
            bar.set_margin(6, 6, 0, 0);
            let span = vec![(candidate.at(0), middle.clone()), (candidate.at(9), middle.clone())];
            let text = Text::new(
                number(candidate.at(5)),
                (candidate.at(9) + most * 0.01, middle),
                ("sans-serif", 13).into_font().color(&BLACK).pos(beside),
            );
            chart.draw_series([bar])?;
            chart.draw_series([PathElement::new(span, BLACK.stroke_width(1))])?;
            chart.draw_series([text])?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("{error}"))
}
