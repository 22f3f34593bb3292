//! `ltx synth`

use ltx::Result;
use ltx::synth::{Like, Synth};

use crate::args::{LikeChoice, Synth as Arguments};
use crate::terminal::Terminal;

/// The smallest tokenizer that the text encoder can do with.
const TOKENIZER: &[u8] = include_bytes!("../../../fixtures/gemma3/tokenizer.json");

pub fn run(arguments: &Arguments) -> Result<()> {
    let like = match arguments.like {
        LikeChoice::Ltx19b => Like::Ltx19b,
        LikeChoice::Ltx22b => Like::Ltx22b,
        LikeChoice::Gemma => Like::Gemma12b,
    };
    let synth = Synth { like, blocks: arguments.blocks, sparse: arguments.sparse, seed: arguments.seed };
    let mut terminal = Terminal::new(arguments.quiet);
    let bytes = synth.write(&arguments.output, TOKENIZER, &mut terminal)?;
    terminal.finish();
    if !arguments.quiet {
        println!("{}: random weights, {:.1} GB on the disk", arguments.output.display(), bytes as f64 / 1e9);
    }
    Ok(())
}
