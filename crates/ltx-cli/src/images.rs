//! `--image PATH [FRAME [STRENGTH [CRF]]]`, as often as there are pictures: each occurrence keeps its own values; and
//! `--last-frame PATH`.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use ltx::pipeline::{ImageCondition, ImageSource};

const NAME: &str = "image";
const LAST: &str = "last-frame";

/// The pictures that the clip is to show, in the order they were given.
#[derive(Debug, Default)]
pub struct Images(pub Vec<ImageCondition>);

impl Args for Images {
    fn augment_args(command: Command) -> Command {
        let help = "A picture that the clip shows: PNG, JPEG or WebP; repeatable";
        let long_help = "A picture that the clip shows: PNG, JPEG or WebP; repeatable. FRAME is the frame it is for, \
            0 (the default) the first, -1 the last; STRENGTH from 0 to 1 (the default: exactly this picture); CRF how \
            coarsely it is compressed as video beforehand, as the model's training pictures were, 0 for not at all \
            [default: the model's, 33]";
        command
            .arg(
                Arg::new(NAME)
                    .long(NAME)
                    .short('i')
                    .alias("init-img")
                    .num_args(1..=4)
                    .value_names(["PATH", "FRAME", "STRENGTH", "CRF"])
                    .action(ArgAction::Append)
                    .allow_negative_numbers(true)
                    .value_parser(NonEmptyStringValueParser::new())
                    .help(help)
                    .long_help(long_help),
            )
            .arg(
                Arg::new(LAST)
                    .long(LAST)
                    .alias("end-img")
                    .value_name("PATH")
                    .value_parser(NonEmptyStringValueParser::new())
                    .help("The same as --image PATH -1"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Images {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let occurrences = matches.get_occurrences::<String>(NAME).into_iter().flatten();
        let mut images =
            occurrences.map(|values| image(&values.collect::<Vec<_>>())).collect::<Result<Vec<_>, _>>()?;
        if let Some(path) = matches.get_one::<String>(LAST) {
            images.push(image(&[path, &"-1".to_string()])?);
        }
        Ok(Self(images))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

fn image(values: &[&String]) -> Result<ImageCondition, Error> {
    Ok(ImageCondition {
        source: ImageSource::File(values.first().map(PathBuf::from).unwrap_or_default()),
        frame: number(values, 1, "FRAME", "a whole number: 0 is the first frame, -1 the last")?.unwrap_or(0),
        strength: number(values, 2, "STRENGTH", "a number from 0 to 1")?.unwrap_or(1.0),
        crf: number(values, 3, "CRF", "a whole number from 0 to 51")?,
    })
}

/// The number at `index`, if it was given.
fn number<T: std::str::FromStr>(
    values: &[&String],
    index: usize,
    name: &str,
    kind: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = values.get(index) else { return Ok(None) };
    value.parse().map(Some).map_err(|_| {
        let path = values.first().map_or("", |path| path);
        let mut message = format!("`{value}` after --image {path} is taken for {name}, {kind}\n");
        if index == 1 {
            message += "hint: if it is the prompt, put it before --image, or give it with --prompt\n";
        }
        Error::raw(ErrorKind::ValueValidation, message)
    })
}
