"""Every reason for which a row can be set aside, in words. Code names a reason; the sentence stands here once."""

REASONS: dict[str, str] = {
    # reading
    "unreadable_row": "the line or record could not be parsed",
    "not_an_object": "the record is not a mapping of columns to values",
    "missing_field": "a column that the format needs is absent or null",
    "wrong_type": "a column holds a value of another type than the format needs",
    # format
    "other_format": "the row's columns or text are laid out in another way than the format reads",
    "unknown_role": "a turn's role is none of system, developer, user, assistant, tool",
    "lone_surrogate": "the text holds half of a surrogate pair, which UTF-8 cannot store",
    "no_assistant_turn": "the conversation does not end with an assistant turn to prefer or imitate",
    "same_role_twice": "two turns in a row have the same role",
    "empty_turn": "a turn before the answer is empty",
    "role_marker_in_text": "a turn's text contains a role marker, so where turns end is not certain",
    "contexts_differ": "chosen and rejected answer different conversations",
    "prompt_empty": "the prompt is empty",
    "equal_scores": "both sides have the same score, so neither is preferred",
    "scores_inverted": "the chosen side has the lower score",
    "score_not_finite": "a score is NaN or infinite",
    "preference_out_of_range": "the preference probability is outside [0, 1]",
    # gate, on text
    "identical_sides": "chosen and rejected are the same text",
    "chosen_empty": "the chosen answer is empty",
    "rejected_empty": "the rejected answer is empty",
    "completion_empty": "the answer is empty",
    "replacement_character": "the text holds U+FFFD, so something was lost in decoding before it came here",
    # gate, on tokens
    "template_refused": "the chat template refused the conversation",
    "template_not_prefix": "the templated conversation does not begin with the templated prompt, token by token",
    "special_token_in_text": "the text holds the spelling of a special token, which would be read as that token",
    "no_end_token": "the templated answer holds no end-of-turn id",
    "prompt_too_long": "the prompt alone fills the length limit",
    "no_room_for_answer": "the prompt leaves less room than the least answer asked for",
    "answer_too_long": "the answer does not fit, and truncation was switched off",
    "identical_tokens": "chosen and rejected are the same tokens",
    "identical_after_truncation": "chosen and rejected are the same tokens once cut to the length limit",
    "nothing_scored": "the loss mask leaves no token to score",
    # identity and splits
    "duplicate_row": "an equal row is already in this version",
    "prompt_in_test": "the prompt is in the test split too",
    # generation
    "duplicate_answer": "another row has the same prompt and good answer and stands for both",
    "chosen_not_preferred": "the preference probability says that chosen is more likely the worse side",
    "segment_unchanged": "every redraw of the segment gave back the original tokens",
    "nothing_to_regenerate": "the answer has no content token to regenerate",
    "not_finite": "the reference gave a log-prob that is not finite",
}
