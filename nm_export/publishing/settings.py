"""Where and how a recipe is published, options included: one answer for every command and for Python."""

from pydantic import ValidationError

from nm_export.errors import UserError
from nm_export.recipe import PublishSection, Recipe


def publish_settings(
    recipe: Recipe,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    overwrite: bool = False,
) -> PublishSection:
    """Return a recipe's `publish` section with the options of a call; its `repo_id` always has a value.

    Args:
        recipe: the recipe.
        repo_id: instead of the recipe's; without either, it is made of the model's name.
        revision: instead of the recipe's.
        private: whether the repository is private; it is, too, if the recipe says so.
        create_pr: likewise.
        overwrite: likewise.

    Raises:
        UserError: an option is no name of a repository or of a branch.
    """
    section = recipe.publish
    name = repo_id or section.repo_id or recipe.name
    changes = {
        "repo_id": name,
        "revision": revision or section.revision,
        "private": private or section.private,
        "create_pr": create_pr or section.create_pr,
        "overwrite": overwrite or section.overwrite,
    }
    given = {key: getattr(section, key) for key in section.model_fields_set}
    try:
        return PublishSection(**{**given, **changes})
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = str(details.get("ctx", {}).get("error", details["msg"]))
        if details["loc"] != ("repo_id",):
            raise UserError(f"--revision: {reason}") from error
        if repo_id:
            raise UserError(f"--repo-id: {reason}") from error
        raise UserError(
            f"The repository would be called like the model, and {reason}; give --repo-id or publish.repo_id"
        ) from error
