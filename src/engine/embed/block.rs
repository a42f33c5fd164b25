//! The result: one block of numbers, row after row, and where each answer's vectors go in it.
//!
//! The block is made when the first answer tells how long a vector is, and zeroed by the system, which gives a page only once it is
//! written. So memory grows with the rows that have come.

use super::piece::Piece;
use crate::engine::error::{Error, Kind, Verdict};

/// What is done with each vector on its way into the block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// How many numbers were asked for.
    pub dimensions: Option<usize>,
    /// Keep only so many numbers of each (Matryoshka) and bring them to length 1 again.
    pub truncate: Option<usize>,
    /// Bring each to length 1.
    pub normalize: bool,
}

/// Rows of numbers.
#[derive(Debug, Default)]
pub(super) struct Block {
    shape: Shape,
    rows: usize,
    /// Numbers of a vector as it comes; 0 until one has come.
    given: usize,
    /// Numbers of a row.
    kept: usize,
    numbers: Vec<f32>,
}

impl Block {
    pub(super) fn new(rows: usize, shape: Shape) -> Self {
        Self { shape, rows, ..Self::default() }
    }

    /// Numbers of a vector as it comes, once one has.
    pub(super) fn given(&self) -> Option<usize> {
        Some(self.given).filter(|given| *given > 0)
    }

    /// Makes room for rows of vectors of `dimensions`, or checks that these are as long as those before.
    pub(super) fn fit(&mut self, dimensions: usize) -> Result<(), Error> {
        if let Some(given) = self.given() {
            if given == dimensions {
                return Ok(());
            }
            return Err(Error::new(
                Kind::InvalidResponse,
                format!("vectors of {dimensions} numbers came where others of the same call have {given}"),
            )
            .advise("Check that all servers behind the endpoint serve the same model."));
        }
        let refuse = |text: String, advice| {
            Err(Error::new(Kind::InvalidResponse, text).verdict_is(Verdict::Final).advise(advice))
        };
        if let Some(asked) = self.shape.dimensions.filter(|asked| *asked != dimensions) {
            return refuse(
                format!("vectors of {dimensions} numbers came where dimensions={asked} was asked for"),
                "The server or the model does not know the parameter; truncate_dim= cuts vectors on this side.",
            );
        }
        let kept = self.shape.truncate.unwrap_or(dimensions);
        if kept > dimensions {
            return refuse(
                format!("truncate_dim is {kept} and the model's vectors have {dimensions} numbers"),
                "Give a smaller truncate_dim.",
            );
        }
        let total = self.rows.saturating_mul(kept);
        // Asked for first, since a block that cannot be had would end the process.
        if Vec::<f32>::new().try_reserve_exact(total).is_err() {
            return Err(Error::internal(format!("no memory for {} rows of {kept} numbers", self.rows))
                .advise("Embed in pages with embed_stream."));
        }
        (self.given, self.kept) = (dimensions, kept);
        self.numbers = vec![0.0; total];
        Ok(())
    }

    fn row(&mut self, row: usize) -> &mut [f32] {
        let start = row.saturating_mul(self.kept);
        self.numbers.get_mut(start..start + self.kept).unwrap_or_default()
    }

    /// Puts the vector of `piece` into its row.
    pub(super) fn put(&mut self, piece: &Piece, vector: &[f32]) {
        match piece.share {
            None => self.place(piece.row as usize, vector),
            Some(share) => self.add(piece.row as usize, vector, share),
        }
    }

    /// Puts `vector` into `row`.
    fn place(&mut self, row: usize, vector: &[f32]) {
        let to_length_1 = self.shape.normalize || self.shape.truncate.is_some();
        let row = self.row(row);
        row.copy_from_slice(vector.get(..row.len()).unwrap_or_default());
        if to_length_1 {
            normalize(row);
        }
    }

    /// Adds a share of `vector` to `row`, which has several.
    fn add(&mut self, row: usize, vector: &[f32], share: f32) {
        for (sum, number) in self.row(row).iter_mut().zip(vector) {
            *sum += share * number;
        }
    }

    /// Brings a row that has several to length 1.
    pub(super) fn normalize(&mut self, row: usize) {
        normalize(self.row(row));
    }

    /// Makes `row` say that it has no vector.
    pub(super) fn blank(&mut self, row: usize) {
        self.row(row).fill(f32::NAN);
    }

    /// Makes `row` the same as `other`.
    pub(super) fn copy(&mut self, other: usize, row: usize) {
        let start = other.saturating_mul(self.kept);
        let (from, to) = (start..start + self.kept, row.saturating_mul(self.kept));
        if from.end <= self.numbers.len() && to + self.kept <= self.numbers.len() {
            self.numbers.copy_within(from, to);
        }
    }

    /// The numbers, and how many a row has.
    pub(super) fn finish(self) -> (Vec<f32>, usize) {
        let unseen = self.shape.truncate.or(self.shape.dimensions).filter(|_| self.rows == 0);
        (self.numbers, if self.given > 0 { self.kept } else { unseen.unwrap_or(0) })
    }
}

/// To length 1, but for a vector of nothing. Summed in 64 bits: thousands of squares lose digits in 32.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        for number in vector {
            *number = (f64::from(*number) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(rows: usize, shape: Shape, dimensions: usize) -> Block {
        let mut block = Block::new(rows, shape);
        block.fit(dimensions).unwrap();
        block
    }

    #[test]
    fn rows_stand_where_they_belong_and_the_missing_are_no_numbers() {
        let mut block = block(3, Shape::default(), 2);
        block.place(2, &[5.0, 6.0]);
        block.blank(1);
        block.copy(2, 0);
        let (numbers, dimensions) = block.finish();
        assert_eq!(dimensions, 2);
        assert_eq!((&numbers[..2], &numbers[4..]), (&[5.0, 6.0][..], &[5.0, 6.0][..]));
        assert!(numbers[2..4].iter().all(|number| number.is_nan()));
    }

    #[test]
    fn cut_vectors_have_length_1_again() {
        let mut block = block(2, Shape { truncate: Some(2), ..Shape::default() }, 3);
        block.place(0, &[3.0, 4.0, 12.0]);
        block.place(1, &[0.0, 0.0, 1.0]);
        assert_eq!(block.finish(), (vec![0.6, 0.8, 0.0, 0.0], 2));
    }

    #[test]
    fn a_row_of_several_is_their_mean_by_length() {
        let mut block = block(1, Shape::default(), 2);
        block.add(0, &[1.0, 0.0], 0.75);
        block.add(0, &[0.0, 1.0], 0.25);
        block.normalize(0);
        let (numbers, _) = block.finish();
        assert!((numbers[0] / numbers[1] - 3.0).abs() < 1e-6);
        assert!((numbers.iter().map(|number| number * number).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn vectors_of_another_length_are_refused() {
        let mut block = block(1, Shape::default(), 2);
        assert!(block.fit(2).is_ok());
        assert_eq!(block.fit(3).unwrap_err().verdict(), Verdict::Retryable);
        let asked = Shape { dimensions: Some(4), ..Shape::default() };
        assert!(Block::new(1, asked).fit(3).unwrap_err().to_string().contains("dimensions=4"));
        let cut = Shape { truncate: Some(4), ..Shape::default() };
        assert!(Block::new(1, cut).fit(3).unwrap_err().to_string().contains("truncate_dim is 4"));
        assert!(Block::new(usize::MAX, Shape::default()).fit(3).unwrap_err().to_string().contains("no memory"));
    }
}
