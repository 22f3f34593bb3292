//! `--shot PROMPT SECONDS`, as often as there are shots.

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use ltx::pipeline::Shot;

const NAME: &str = "shot";

/// The shots, in the order they were given.
#[derive(Debug, Default)]
pub struct Shots(pub Vec<Shot>);

impl Shots {
    /// How long they are together.
    pub fn seconds(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|shot| shot.seconds).sum())
    }
}

impl Args for Shots {
    fn augment_args(command: Command) -> Command {
        let long_help = "A part of the clip with a prompt of its own, and how long it is; repeatable, one after the other. \
            PROMPT, if there is one too, is put before each: what all shots have in common. Each shot goes on with \
            the last one's picture and sound";
        command.arg(
            Arg::new(NAME)
                .long(NAME)
                .num_args(2)
                .value_names(["PROMPT", "SECONDS"])
                .action(ArgAction::Append)
                .allow_negative_numbers(true)
                .conflicts_with_all(["frames", "seconds", "embedding", "enhance_prompt", "placeholder"])
                .value_parser(NonEmptyStringValueParser::new())
                .help("A part of the clip with a prompt of its own, and how long it is; repeatable")
                .long_help(long_help),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Shots {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let occurrences = matches.get_occurrences::<String>(NAME).into_iter().flatten();
        let shot = |values: Vec<&String>| {
            // There are two: clap has counted them.
            let prompt = values.first().map_or_else(String::new, |prompt| prompt.to_string());
            let seconds = values.get(1).map_or("", |seconds| seconds);
            let seconds = seconds.parse().map_err(|_| {
                let message = format!("`{seconds}` after --shot `{prompt}` is taken for SECONDS, a number\n");
                Error::raw(ErrorKind::ValueValidation, message)
            })?;
            Ok(Shot { prompt, seconds })
        };
        occurrences.map(|values| shot(values.collect())).collect::<Result<_, _>>().map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
