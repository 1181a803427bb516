// The page from top to bottom.

document.getElementById("page").replaceChildren(
  pageHeader(),
  findings(),
  selection(),
  h("div", { class: "columns" }, trajectoryMap(), curves()),
  ...(CONTENT.runs.length > 1 ? [severalRuns()] : []),
  keyFigures(),
  layers(),
  h("div", { class: "columns even" }, path(), spectrum()),
  settling(),
  h("footer", {}, `Made ${CONTENT.made} by hallmarks ${CONTENT.version} from the store ${CONTENT.store}. The address of this page holds what is shown: copy it to send this view.`),
);
