// Shows errors of requests on the page, which Dash writes to the browser's console only.
(function () {
  const send = window.fetch;

  function say(text) {
    let box = document.getElementById("unanswered");
    if (box === null) {
      box = document.createElement("div");
      box.id = "unanswered";
      box.setAttribute("role", "alert");
      document.body.prepend(box);
    }
    box.textContent = text;
    box.hidden = text === "";
  }

  window.fetch = async function (resource, options) {
    const url = resource instanceof Request ? resource.url : String(resource);
    if (!url.includes("_dash-update-component")) {
      return send(resource, options);
    }
    let response;
    try {
      response = await send(resource, options);
    } catch (error) {
      const body = (options && options.body) || "";
      say(
        "No answer: the program behind this page (dipolegnn serve) has ended, or does not accept a " +
          `request of ${(body.length / 1e6).toFixed(1)} MB.`
      );
      throw error;
    }
    say(response.ok ? "" : `No answer: ${(await response.clone().text()).split("\n")[0]}`);
    return response;
  };
})();
