/* The network without its front end: what network.c gives to frontend.c. */

#ifndef NETWORK_H
#define NETWORK_H

/* Sets one normalised feature of the input. */
void network_set(int channel, int band, int frame, float value);

/* Memory for the front end, which the network uses only once all features are set. */
float *network_workspace(void);

/* Runs on the features that were set; writes CLASSES logits. */
void network_run(float *logits);

#endif
