// Buttons of cards: sends a press to the server, and restores the focus when the cards are replaced.
let pressed = null;
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-number]");
  if (!button || button.disabled) return;
  pressed = button.dataset.number;
  trigger("press", { number: Number(button.dataset.number) });
});
watch("value", () => {
  if (pressed === null) return;
  element.querySelector(`button[data-number="${pressed}"]`)?.focus({ preventScroll: true });
  pressed = null;
});
